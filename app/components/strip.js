const ROOM = 300  // tokens drawn at once: thousands of nodes slow the whole page down

export default function ({ data, parentElement, setTriggerValue }) {
  const root = rootOf(parentElement), count = data.tokens.length
  let list = root.querySelector('[role=listbox]')
  let at = data.selected
  const start = i => count <= ROOM ? 0 : Math.max(0, Math.min(count - ROOM, i - Math.floor(ROOM / 2)))
  const option = i => list.children[i - root.from]
  const signature = JSON.stringify(data.tokens)
  const fresh = root.tokens !== signature
  if (fresh) {
    root.tokens = signature
    list = el('div', 'strip', null, { role: 'listbox', tabindex: '0', 'aria-label': data.label })
    root.replaceChildren(list)
    if (count > ROOM) root.append(pager())
  }
  if (fresh || !option(at)) fill(start(at))
  root.turn = steps => fill(Math.max(0, Math.min(count - ROOM, root.from + steps * ROOM)))

  function pager() {
    const line = el('div', 'pager'), told = el('span', 'told', '', { role: 'status' })
    const button = (words, steps) => {
      const node = el('button', 'turn', words, { type: 'button' })
      node.onclick = () => root.turn(steps)
      return node
    }
    line.append(button('‹ earlier', -1), told, button('later ›', 1))
    return line
  }
  function fill(from) {
    root.from = from
    const shown = data.tokens.slice(from, from + ROOM)
    list.replaceChildren(...shown.map((text, k) => {
      const i = from + k
      const option = el('span', 'cell', null, { role: 'option', id: `t${i}`, title: `position ${i}`, 'aria-setsize': count, 'aria-posinset': i + 1 })
      option.append(el('span', 'text', text), el('span', 'pos', String(i), { 'aria-hidden': 'true' }))
      return option
    }))
    const chosen = option(at)  // in sight, without moving the page
    list.scrollTop = chosen ? chosen.offsetTop - list.offsetTop - list.clientHeight + chosen.offsetHeight + 4 : 0
    const told = root.querySelector('.told')
    if (told) {
      told.textContent = `positions ${from} to ${from + shown.length - 1} of ${count}`
      const [earlier, later] = root.querySelectorAll('.turn')
      earlier.disabled = from === 0
      later.disabled = from + ROOM >= count
    }
    dress()
  }
  function dress() {
    const edited = new Set(data.edits)
    ;[...list.children].forEach((node, k) => {
      const i = root.from + k
      node.classList.toggle('edited', edited.has(i))
      node.onclick = () => pick(i)
    })
    mark()
  }
  function mark() {
    ;[...list.children].forEach((node, k) => {
      const i = root.from + k
      node.classList.toggle('picked', i === data.selected)
      node.classList.toggle('at', i === at)
      node.setAttribute('aria-selected', String(i === data.selected))
    })
    list.setAttribute('aria-activedescendant', `t${at}`)
  }
  function move(to) {
    at = Math.max(0, Math.min(count - 1, to))
    if (!option(at)) fill(start(at))
    option(at)?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
    mark()
  }
  function pick(i) { at = i; data.selected = i; mark(); setTriggerValue('pick', i) }
  list.onkeydown = event => {
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 50, PageDown: at + 50, Home: 0, End: count - 1 }
    if (event.key in steps) { event.preventDefault(); move(steps[event.key]) }
    else if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pick(at) }
  }
  dress()
}
