export default function ({ data, parentElement, setTriggerValue }) {
  const root = rootOf(parentElement)
  root.trigger = setTriggerValue
  const bypass = () => root.trigger('act', { do: 'bypass' })
  const onKey = event => {
    const typing = event.composedPath().some(n => n.tagName === 'INPUT' || n.tagName === 'TEXTAREA' || n.isContentEditable)
    if (event.key === 'e' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && root.plan?.length) bypass()
  }
  if (root.onKey) document.removeEventListener('keydown', root.onKey)
  root.onKey = onKey
  document.addEventListener('keydown', onKey)
  const cleanup = () => document.removeEventListener('keydown', onKey)
  if (!changed(root, data)) return cleanup
  root.plan = data.plan
  const metric = el('div', 'metric')
  metric.append(sentence('span', 'name', data.name))
  const value = el('span', 'value')
  value.append(el('span', data.after === null ? 'now num' : 'was num', data.before))
  if (data.after !== null) value.append(el('span', 'arrow', '→'), el('span', 'now num', data.after))
  value.append(el('span', 'unit', data.unit))
  metric.append(value, sentence('span', 'how', data.how))

  const tray = el('div', 'tray', null, { role: 'group', 'aria-label': 'Plan: interventions in the order in which they act' })
  if (!data.plan.length) tray.append(el('span', 'empty', data.empty))
  data.plan.forEach((edit, i) => {
    const chip = el('span', data.bypass ? 'chip off' : 'chip', null, { title: edit.title })
    const button = (text, label, action) => {
      const node = el('button', 'act', text, { type: 'button', 'aria-label': `${label}: ${edit.label}` })
      node.onclick = () => root.trigger('act', action)
      return node
    }
    chip.append(el('span', 'text', edit.label))
    if (edit.receipt) chip.append(el('span', 'receipt num', edit.receipt))
    if (i > 0) chip.append(button('‹', 'earlier', { do: 'move', index: i, to: i - 1 }))
    if (i < data.plan.length - 1) chip.append(button('›', 'later', { do: 'move', index: i, to: i + 1 }))
    chip.append(button('×', 'remove', { do: 'remove', index: i }))
    tray.append(chip)
  })
  if (data.plan.length) {
    const toggle = el('button', 'bypass', data.bypass ? 'Apply plan' : 'Bypass', { type: 'button', 'aria-pressed': String(data.bypass), title: 'Run without the plan, or with it again (E)' })
    toggle.onclick = bypass
    tray.append(toggle)
  }
  root.replaceChildren(metric, tray)
  root.className = 'root bar'
  return cleanup
}
