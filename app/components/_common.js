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
// A click in the menu drops the query, and the app writes it again. That must be one entry of the history:
// Back to an address without a query would have it written once more, as a new entry, and never get further.
if (!history.pushState.ofWorkbench) {
  const push = history.pushState.bind(history)
  history.pushState = (state, title, address) => {
    const to = new URL(address ?? location.href, location.href)
    const completes = !location.search && to.search && to.pathname === location.pathname
    return completes ? history.replaceState(state, title, address) : push(state, title, address)
  }
  history.pushState.ofWorkbench = true
}
