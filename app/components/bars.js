export default function ({ data, parentElement, setTriggerValue }) {
  const root = rootOf(parentElement)
  root.trigger = setTriggerValue
  if (!changed(root, data)) return
  const list = el('ol', 'bars', null, { 'aria-label': data.label })
  const zero = data.signed ? 50 : 0, room = data.signed ? 50 : 100
  const share = v => room * Math.max(-1, Math.min(1, v / (data.most || 1)))
  data.rows.forEach((row, i) => {
    const item = el('li', 'row' + (i === data.picked ? ' picked' : '') + (row.tone ? ' ' + row.tone : ''))
    const name = data.pickable ? el('button', row.literal ? 'label tok' : 'label', row.label, { type: 'button' }) : el('span', row.literal ? 'label tok' : 'label', row.label)
    if (data.pickable) name.onclick = () => root.trigger('act', { do: 'pick', index: i })
    const track = el('span', 'track', null, { 'aria-hidden': 'true' }), bar = el('span', 'bar')
    const width = share(row.value)
    bar.style.left = `${zero + Math.min(0, width)}%`
    bar.style.width = `${Math.max(Math.abs(width), row.value ? 0.4 : 0)}%`
    track.append(bar)
    if (data.signed) track.append(el('span', 'zero'))
    if (row.before !== null && Math.abs(share(row.before)) > 0.75) {  // a tick at the zero line says nothing
      const tick = el('span', 'before', null, { title: 'without the plan' })
      tick.style.left = `${zero + share(row.before)}%`
      track.append(tick)
    }
    const value = el('span', 'value num', row.text)
    const tail = el('span', 'tail')
    if (row.detail) tail.append(el('span', 'detail', row.detail))
    for (const [action, words] of row.active ? data.actions : []) {
      const button = el('button', 'act', words, { type: 'button', 'aria-label': `${words}: ${row.label}` })
      button.onclick = () => root.trigger('act', { do: action, index: i })
      tail.append(button)
    }
    item.append(name, track, value, tail)
    list.append(item)
  })
  root.replaceChildren(list)
}
