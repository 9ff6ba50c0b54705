export default function ({ data, parentElement }) {
  const root = rootOf(parentElement)
  if (!changed(root, data)) return
  const open = root.open ?? ''
  root.replaceChildren()
  const line = el('div', 'line'), checks = el('div', 'checks'), links = el('div', 'links'), body = el('div', 'body')
  for (const check of data.checks) {
    const item = el('span', check.good ? 'check' : 'check bad')
    item.append(el('span', 'mark', check.good ? '✓' : '!', { 'aria-hidden': 'true' }), el('span', '', check.name + ' '), el('b', 'num', check.value))
    if (check.note) item.append(el('span', 'note', ' ' + check.note))
    checks.append(item)
  }
  const panels = {
    Method: () => el('p', 'method', data.method),
    Table: () => table(data.table),
    Python: () => code(data.code),
  }
  const show = name => {
    root.open = name
    body.replaceChildren(...(name ? [panels[name]()] : []))
    for (const button of links.children) button.setAttribute('aria-expanded', String(button.textContent === name))
  }
  for (const name of Object.keys(panels)) {
    const button = el('button', 'link', name, { type: 'button', 'aria-expanded': 'false' })
    button.onclick = () => show(root.open === name ? '' : name)
    links.append(button)
  }
  line.append(checks, links)
  root.append(line, body)
  show(open)
}

const number = v => typeof v === 'number'
const table = data => {
  const box = el('div', 'table'), node = el('table'), head = el('tr')
  node.append(el('caption', '', data.caption))
  const numeric = data.columns.map((_, i) => data.rows.length > 0 && data.rows.every(row => number(row[i]) || row[i] === null))
  data.columns.forEach((name, i) => head.append(el('th', numeric[i] ? 'num' : '', name, { scope: 'col' })))
  const rows = data.rows.map(row => {
    const line = el('tr')
    row.forEach((v, i) => line.append(el('td', numeric[i] ? 'num' : '', number(v) ? String(+v.toPrecision(5)) : v === null ? '–' : v)))
    return line
  })
  const thead = el('thead'), tbody = el('tbody')
  thead.append(head); tbody.append(...rows); node.append(thead, tbody)
  const csv = [data.columns, ...data.rows].map(row => row.map(v => number(v) ? v : '"' + String(v ?? '').replaceAll('"', '""') + '"').join(',')).join('\n')
  box.append(node)
  const both = el('div', 'panel')
  both.append(copier('Copy as CSV', csv), box)
  return both
}
const code = text => {
  const both = el('div', 'panel')
  both.append(copier('Copy', text), el('pre', '', text, { tabindex: '0' }))
  return both
}
const copier = (name, text) => {
  const button = el('button', 'copy', name, { type: 'button' })
  button.onclick = async () => {
    await navigator.clipboard.writeText(text)
    button.textContent = 'Copied'
    setTimeout(() => { button.textContent = name }, 1500)
  }
  return button
}
