export default function ({ data, parentElement }) {
  const root = rootOf(parentElement)
  if (!changed(root, data)) return
  root.replaceChildren()
  const box = el('section', data.kind, null, data.kind === 'page' || data.kind === 'card' ? {} : { role: 'status' })
  if (data.title.length) box.append(sentence(data.kind === 'page' ? 'h1' : 'h2', '', data.title))
  for (const parts of data.sentences) box.append(sentence('p', '', parts))
  if (data.rows?.length) {
    const list = el('dl')
    for (const [name, parts] of data.rows) list.append(el('dt', '', name), sentence('dd', 'num', parts))
    box.append(list)
  }
  root.append(box)
}
