// Two continuations of one prompt, drawn with the same noise, as they are written.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = rootOf(parentElement)
  root.trigger = setTriggerValue
  if (changed(root, data)) start(root, data)
  // Streamlit calls the cleanup when the component goes, and before every call of this function;
  // a stream that is still ours must survive the latter, so it is closed a moment later.
  clearTimeout(root.leaving)
  return () => { root.leaving = setTimeout(() => root.source?.close(), 50) }
}

const start = (root, data) => {
  root.source?.close()
  const columns = data.columns.map(column => {
    const box = el('section', 'column'), body = el('p', 'text', null, { tabindex: '0', 'aria-label': column.title })
    const head = el('header')
    head.append(el('h3', column.tone, column.title), el('span', 'note', column.note))
    body.append(el('span', 'prompt', data.prompt))
    box.append(head, body)
    return { box, body, count: 0 }
  })
  const grid = el('div', 'twin'), foot = el('div', 'foot')
  grid.append(...columns.map(c => c.box))
  const state = el('span', 'state', '', { role: 'status' }), stop = el('button', 'stop', 'Stop', { type: 'button' })
  stop.onclick = () => root.trigger('stop', data.job)
  stop.hidden = true
  foot.append(state, stop)
  root.replaceChildren(grid, foot)
  const add = (row, text, weight, apart) => {
    const span = el('span', apart ? 'piece apart' : 'piece', text)
    if (weight) span.style.setProperty('--weight', weight.toFixed(3))
    columns[row].body.append(span)
    columns[row].count += 1
  }
  if (data.done) {
    data.done.forEach((pieces, row) => pieces.forEach(([text, weight, apart]) => add(row, text, weight, apart)))
    state.textContent = data.state
    return
  }
  if (!data.job) { state.textContent = data.state; return }
  stop.hidden = false
  state.textContent = 'writing'
  const source = root.source = new EventSource(new URL(`api/jobs/${data.job}?lane=${encodeURIComponent(data.lane)}`, location.href))
  source.onmessage = event => {
    for (const [row, text] of JSON.parse(event.data)) add(row, text, 0, false)
    state.textContent = `writing · ${Math.max(...columns.map(c => c.count))} of ${data.total} tokens`
  }
  source.addEventListener('end', event => {
    source.close()
    stop.hidden = true
    const how = state.textContent = JSON.parse(event.data)
    if (how !== 'cancelled') root.trigger('end', data.job)  // who cancelled it draws what follows, maybe another page
  })
  source.onerror = () => { source.close(); stop.hidden = true; state.textContent = 'The connection ended.'; root.trigger('end', data.job) }
}
