export default function ({ data, parentElement, setTriggerValue }) {
  const root = rootOf(parentElement)
  let list = root.querySelector('[role=listbox]')
  const signature = JSON.stringify(data.tokens)
  if (root.tokens !== signature) {
    root.tokens = signature
    list = el('div', 'strip', null, { role: 'listbox', tabindex: '0', 'aria-label': data.label })
    data.tokens.forEach((text, i) => {
      const option = el('span', 'cell', null, { role: 'option', id: `t${i}`, title: `position ${i}` })
      option.append(el('span', 'text', text), el('span', 'pos', String(i), { 'aria-hidden': 'true' }))
      list.append(option)
    })
    root.replaceChildren(list)
    const chosen = list.children[data.selected]  // in sight, without moving the page
    if (chosen) list.scrollTop = chosen.offsetTop - list.offsetTop - list.clientHeight + chosen.offsetHeight + 4
  }
  const options = [...list.children]
  let at = data.selected
  const mark = () => options.forEach((option, i) => {
    option.classList.toggle('picked', i === data.selected)
    option.classList.toggle('at', i === at)
    option.setAttribute('aria-selected', String(i === data.selected))
  })
  const move = to => {
    at = Math.max(0, Math.min(options.length - 1, to))
    list.setAttribute('aria-activedescendant', `t${at}`)
    options[at]?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
    mark()
  }
  const pick = i => { at = i; data.selected = i; mark(); setTriggerValue('pick', i) }
  data.edits.forEach(i => options[i]?.classList.add('edited'))
  options.forEach((option, i) => {
    option.classList.toggle('edited', data.edits.includes(i))
    option.onclick = () => pick(i)
  })
  list.onkeydown = event => {
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: options.length - 1 }
    if (event.key in steps) { event.preventDefault(); move(steps[event.key]) }
    else if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pick(at) }
  }
  list.setAttribute('aria-activedescendant', `t${at}`)
  mark()
}
