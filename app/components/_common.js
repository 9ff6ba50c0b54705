// Shared by every component. Text of the model goes into the page by textContent only.
const el = (tag, className = '', text = null, attributes = {}) => {
  const node = document.createElement(tag)
  if (className) node.className = className
  if (text !== null) node.textContent = text
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  return node
}
const rootOf = parent => parent.querySelector('.root')
// A segment is [text, kind]; kinds name how a piece of a sentence is set.
const segment = ([text, kind]) => {
  if (!kind) return document.createTextNode(text)
  const classes = { token: 'tok', target: 'tok target', foil: 'tok foil', number: 'num', strong: 'strong', muted: 'muted' }
  return el('span', classes[kind] ?? '', text)
}
const sentence = (tag, className, parts) => {
  const node = el(tag, className)
  node.append(...parts.map(segment))
  return node
}
// Rebuilds only when what is shown changed; Streamlit calls us again on every rerun.
const changed = (root, data) => {
  const signature = JSON.stringify(data)
  if (root.signature === signature) return false
  root.signature = signature
  return true
}
