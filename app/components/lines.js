const NS = 'http://www.w3.org/2000/svg'
const shape = (tag, attributes, text = null) => {
  const node = document.createElementNS(NS, tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  if (text !== null) node.textContent = text
  return node
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = rootOf(parentElement)
  root.trigger = i => setTriggerValue('pick', i)
  root.draw = () => draw(root, data)
  const watcher = new ResizeObserver(() => { if (root.clientWidth !== root.drawn) root.draw() })
  watcher.observe(root)
  if (changed(root, data)) root.draw()
  return () => watcher.disconnect()
}

// `step` runs along the shared axis (upward where the figure says so), `value` along the other.
const draw = (root, data) => {
  const width = root.clientWidth
  if (!width) return
  root.drawn = width
  const up = data.upward, n = data.steps.length, height = data.height
  const box = { left: 46, right: width - 14, top: 10, bottom: height - 40 }
  const span = (data.high - data.low) || 1
  const along = up ? i => box.bottom - (i + 0.5) / n * (box.bottom - box.top) : i => box.left + (i + 0.5) / n * (box.right - box.left)
  const across = up ? v => box.left + (v - data.low) / span * (box.right - box.left) : v => box.bottom - (v - data.low) / span * (box.bottom - box.top)
  const point = (i, v) => up ? [across(v), along(i)] : [along(i), across(v)]
  const svg = shape('svg', { width, height, role: 'img', 'aria-label': data.label, tabindex: '0' })
  const line = (x1, y1, x2, y2, className) => svg.append(shape('line', { x1, y1, x2, y2, class: className }))
  const text = (x, y, words, anchor, className = 'tick') => svg.append(shape('text', { x, y, 'text-anchor': anchor, class: className }, words))
  for (const [v, words] of data.ticks) {
    const at = across(v)
    if (up) { line(at, box.top, at, box.bottom, 'grid'); text(at, box.bottom + 14, words, 'middle') }
    else { line(box.left, at, box.right, at, 'grid'); text(box.left - 6, at + 4, words, 'end') }
  }
  const room = up ? box.bottom - box.top : box.right - box.left, every = Math.max(1, Math.ceil(n * (up ? 16 : 42) / room))
  data.steps.forEach((words, i) => {
    const crowded = data.picked !== null && Math.abs(i - data.picked) < every
    if (i !== data.picked && (i % every || crowded)) return
    if (up) text(box.left - 6, along(i) + 4, words, 'end'); else text(along(i), box.bottom + 14, words, 'middle')
  })
  if (up) {
    text((box.left + box.right) / 2, height - 6, data.value_title, 'middle', 'axis')
    svg.append(shape('text', { transform: `translate(11 ${(box.top + box.bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle', class: 'axis' }, data.step_title))
  } else {
    text((box.left + box.right) / 2, height - 6, data.step_title, 'middle', 'axis')
    svg.append(shape('text', { transform: `translate(11 ${(box.top + box.bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle', class: 'axis' }, data.value_title))
  }
  if (data.picked !== null) {
    const at = along(data.picked)
    if (up) line(box.left, at, box.right, at, 'pick'); else line(at, box.top, at, box.bottom, 'pick')
  }
  data.lines.forEach(one => {
    const points = one.values.flatMap((v, i) => v === null ? [] : [point(i, v).map(c => c.toFixed(1)).join(',')])
    svg.append(shape('polyline', { points: points.join(' '), class: `curve ${one.tone}` }))
    one.values.forEach((v, i) => { if (v !== null) { const [cx, cy] = point(i, v); svg.append(shape('circle', { cx, cy, r: i === data.picked ? 4 : 2, class: `dot ${one.tone}` })) } })
  })
  const out = el('output', '', '', { 'aria-live': 'polite' }), say = i => {
    out.textContent = `${data.step_title} ${data.steps[i]}: ` + data.lines.map(one => `${one.name} ${one.values[i] === null ? 'undefined' : one.texts[i]}`).join('; ')
  }
  const step = event => {
    const r = svg.getBoundingClientRect(), share = up ? (box.bottom - (event.clientY - r.top)) / (box.bottom - box.top) : (event.clientX - r.left - box.left) / (box.right - box.left)
    return Math.max(0, Math.min(n - 1, Math.floor(share * n)))
  }
  let at = data.picked ?? n - 1
  svg.onmousemove = event => say(step(event))
  svg.onmouseleave = () => say(at)
  if (data.pickable) {
    svg.classList.add('pickable')
    svg.onclick = event => { at = step(event); say(at); root.trigger(at) }
  }
  svg.onkeydown = event => {
    const to = { ArrowUp: at + 1, ArrowRight: at + 1, ArrowDown: at - 1, ArrowLeft: at - 1, Home: 0, End: n - 1, Enter: at }[event.key]
    if (to === undefined) return
    event.preventDefault()
    at = Math.max(0, Math.min(n - 1, to)); say(at)
    if (event.key === 'Enter' && data.pickable) root.trigger(at)
  }
  const key = el('div', 'key')
  for (const one of data.lines) {
    const item = el('span', `series ${one.tone}`)
    item.append(el('i', 'swatch', null, { 'aria-hidden': 'true' }), el('span', one.literal ? 'tok' : '', one.name))
    key.append(item)
  }
  root.replaceChildren(key, svg, out)
  say(at)
}
