// A canvas of cells with its axes, ticks and colour bar, so that a saved picture has them too.
// Data on the wire: u32 length of the JSON head | head | cells, u8 (0 = masked) or f32 (NaN = masked).
const FONT = 11, LEGEND = 36, PAD = 6

export default function ({ data, parentElement, setTriggerValue }) {
  const root = rootOf(parentElement)
  const figure = read(data)
  if (!root.view) build(root)
  const css = getComputedStyle(root)
  const theme = css.getPropertyValue('--fg') + css.getPropertyValue('--bg')
  const same = root.signature === figure.signature && root.theme === theme
  root.signature = figure.signature; root.theme = theme
  root.trigger = at => setTriggerValue('pick', at)
  if (!same) {
    root.figure = figure
    const [rows, columns] = figure.grid
    const clamp = ([i, j]) => [Math.max(0, Math.min(rows - 1, i)), Math.max(0, Math.min(columns - 1, j))]
    root.at = clamp(figure.pick ?? root.at ?? [0, 0])
    root.draw()
  }
  const watcher = new ResizeObserver(() => { if (root.clientWidth !== root.drawn) root.draw() })
  watcher.observe(root)
  return () => watcher.disconnect()
}

const read = bytes => {
  const n = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)
  const text = new TextDecoder().decode(bytes.subarray(4, 4 + n)), head = JSON.parse(text)
  const raw = bytes.slice(4 + n), [R, C] = head.shape, span = head.high - head.low
  const cells = head.type === 'f4' ? new Float32Array(raw.buffer) : Float32Array.from(raw, v => v ? head.low + (v - 1) / 254 * span : NaN)
  const [th, tw] = head.tile ?? [1, 1]
  let sum = 0
  for (let i = 0; i < raw.length; i += 1) sum = (sum * 31 + raw[i]) | 0
  return { ...head, cells, R, C, th, tw, grid: [Math.round(R / th), Math.round(C / tw)], signature: text + sum }
}

const build = root => {
  root.view = el('div', 'heat')
  const scroll = el('div', 'scroll'), canvas = el('canvas', '', null, { tabindex: '0', role: 'img' })
  const line = el('div', 'line'), out = el('output', '', '', { 'aria-live': 'polite' })
  const save = el('button', 'save', 'PNG', { type: 'button', title: 'Save this figure as a picture' })
  root.pin = el('canvas', 'pin', null, { 'aria-hidden': 'true' })
  scroll.append(canvas, root.pin); line.append(out, save); root.view.append(scroll, line); root.replaceChildren(root.view)
  root.draw = () => paint(root, canvas, out)
  const cell = event => {
    const g = root.geometry, i = Math.floor((event.offsetY - g.top) / g.h), j = Math.floor((event.offsetX - g.left) / g.w)
    return i >= 0 && j >= 0 && i < root.figure.grid[0] && j < root.figure.grid[1] ? [i, j] : null
  }
  canvas.onmousemove = event => { const at = cell(event); root.hover = at; out.value = at ? tell(root.figure, at) : rest(root); canvas.style.cursor = at ? 'pointer' : 'default'; overlay(root, canvas) }
  canvas.onmouseleave = () => { root.hover = null; out.value = rest(root); overlay(root, canvas) }
  canvas.onclick = event => { const at = cell(event); if (at) { root.at = at; pick(root, canvas) } }
  canvas.onfocus = canvas.onblur = () => overlay(root, canvas)
  canvas.onkeydown = event => {
    const [rows, columns] = root.figure.grid, [i, j] = root.at
    const to = { ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], Home: [i, 0], End: [i, columns - 1], PageUp: [i - 5, j], PageDown: [i + 5, j], Enter: [i, j], ' ': [i, j] }[event.key]
    if (!to) return
    event.preventDefault()
    root.at = [Math.max(0, Math.min(rows - 1, to[0])), Math.max(0, Math.min(columns - 1, to[1]))]
    out.value = tell(root.figure, root.at)
    if (event.key === 'Enter' || event.key === ' ') pick(root, canvas); else overlay(root, canvas)
  }
  save.onclick = () => {
    const link = el('a', '', null, { href: canvas.toDataURL('image/png'), download: root.figure.file + '.png' })
    link.click()
  }
}

const pick = (root, canvas) => {
  root.figure.pick = root.at
  overlay(root, canvas)
  root.trigger(root.at)
}

const rest = root => root.figure.pick ? tell(root.figure, root.figure.pick) : ''
const tell = (f, [i, j]) => {
  const where = `${f.row_title} ${f.rows[i]}, ${f.column_title} ${f.columns[j]}`
  if (f.tile) return where
  const v = f.cells[i * f.C + j], text = f.texts?.[i]?.[j]
  return `${where}: ${text ? text + ' ' : ''}${Number.isNaN(v) ? 'undefined' : (v.toPrecision(3)).replace('-', '−') + (f.unit ? ' ' + f.unit : '')}`
}

const palette = (root, signed) => {
  const css = getComputedStyle(root), name = signed ? '--st-chart-diverging-colors' : '--st-chart-sequential-colors'
  const stops = css.getPropertyValue(name).split(/,(?![^(]*\))/).map(s => s.trim())
  const g = new OffscreenCanvas(256, 1).getContext('2d', { willReadFrequently: true }), ramp = g.createLinearGradient(0, 0, 256, 0)
  if (!signed) ramp.addColorStop(0, css.getPropertyValue('--bg').trim())
  stops.forEach((s, i) => ramp.addColorStop(signed ? i / (stops.length - 1) : 0.02 + 0.98 * i / (stops.length - 1), s))
  g.fillStyle = ramp; g.fillRect(0, 0, 256, 1)
  return g.getImageData(0, 0, 256, 1).data
}

const paint = (root, canvas, out) => {
  const f = root.figure, css = getComputedStyle(root), width = root.clientWidth, [rows, columns] = f.grid
  if (!width) return
  root.drawn = width
  const g = canvas.getContext('2d'), mono = css.getPropertyValue('--mono'), font = css.getPropertyValue('font-family')
  const colour = name => { const probe = el('i'); probe.style.color = `var(${name})`; root.append(probe); const c = getComputedStyle(probe).color; probe.remove(); return c }
  root.colours = { fg: colour('--fg'), muted: colour('--muted'), line: colour('--line'), accent: colour('--accent'), bg: colour('--bg') }
  g.font = `${FONT}px ${mono}`
  const wide = texts => Math.max(0, ...texts.map(t => g.measureText(t).width))
  const labels = Math.ceil(wide(f.columns)), left = Math.ceil(Math.max(wide(f.rows) + PAD + 26, f.labels === 'bottom' ? Math.min(labels, 90) * 0.5 : 0))
  const least = f.cell[0], most = f.cell[1]
  const lean = labels * Math.cos(0.66)  // how far a tilted label reaches beyond its column
  const cellWidth = room => Math.max(least, Math.min(most, room / columns))
  const flat = labels + 4 <= cellWidth(width - left - PAD), over = flat || f.labels !== 'top' ? 0 : lean
  const w = cellWidth(width - left - PAD - over), tilt = flat ? 0 : labels * Math.sin(0.66) + FONT
  const band = (flat ? FONT + PAD : tilt + PAD) + FONT + PAD + 4  // labels and the axis' name
  const h = f.height || w
  const top = f.labels === 'top' ? band : PAD, bottom = (f.labels === 'top' ? 0 : band) + LEGEND
  const W = Math.ceil(Math.max(left + w * columns + PAD + over, 220)), H = Math.ceil(top + h * rows + bottom), ratio = window.devicePixelRatio || 1
  root.geometry = { left, top, w, h, W, H, ratio, band, flat }
  canvas.width = W * ratio; canvas.height = H * ratio; canvas.style.width = W + 'px'; canvas.style.height = H + 'px'
  canvas.setAttribute('aria-label', f.label)
  g.setTransform(ratio, 0, 0, ratio, 0, 0)
  g.fillStyle = root.colours.bg; g.fillRect(0, 0, W, H)
  const rgb = palette(root, f.signed), span = (f.high - f.low) || 1
  const shade = v => 4 * Math.max(0, Math.min(255, Math.round((v - f.low) / span * 255)))
  if (f.tile) tiles(f, g, root.geometry, rgb, shade, root.colours); else cells(f, g, root.geometry, rgb, shade, root.colours, mono)
  axes(f, g, root.geometry, root.colours, mono, font)
  root.geometry.legend = legend(f, g, { ...root.geometry, W: Math.min(W, width) }, rgb, root.colours, font)
  root.base = new OffscreenCanvas(canvas.width, canvas.height)
  root.base.getContext('2d').drawImage(canvas, 0, 0)
  overlay(root, canvas)
  pin(root, canvas.parentElement)
  out.value = rest(root)
  const scroll = canvas.parentElement, at = left + root.at[1] * w
  if (W > scroll.clientWidth && (at < scroll.scrollLeft + left || at + w > scroll.scrollLeft + scroll.clientWidth)) {
    scroll.scrollLeft = at + w + PAD - scroll.clientWidth  // the picked cell is in sight
  }
}

// A figure wider than its place scrolls; its layers, axis names and colour bar stay in sight.
const pin = (root, scroll) => {
  const { left, top, h, H, W, ratio } = root.geometry, [rows] = root.figure.grid, width = scroll.clientWidth
  root.pin.hidden = W <= width
  if (root.pin.hidden) { root.pin.width = root.pin.height = 0; root.pin.style.width = root.pin.style.height = '0'; return }
  root.pin.width = width * ratio; root.pin.height = H * ratio; root.pin.style.width = width + 'px'; root.pin.style.height = H + 'px'
  const g = root.pin.getContext('2d'), low = H - LEGEND - (root.figure.labels === 'top' ? 0 : FONT + PAD)
  const copy = (x, y, w, height) => g.drawImage(root.base, x * ratio, y * ratio, w * ratio, height * ratio, x * ratio, y * ratio, w * ratio, height * ratio)
  copy(0, 0, left - 1, H)
  copy(0, low, width, H - low)
  if (root.figure.labels === 'top') copy(0, 0, width, FONT + PAD)
}

const cells = (f, g, { left, top, w, h }, rgb, shade, colours, mono) => {
  g.font = `${FONT}px ${mono}`; g.textAlign = 'center'; g.textBaseline = 'middle'
  const fit = (text, room) => {
    if (g.measureText(text).width <= room) return text
    for (let n = text.length - 1; n > 0; n -= 1) if (g.measureText(text.slice(0, n) + '…').width <= room) return text.slice(0, n) + '…'
    return ''
  }
  f.cells.forEach((v, k) => {
    if (Number.isNaN(v)) return
    const i = Math.floor(k / f.C), j = k % f.C, x = Math.round(left + j * w), y = Math.round(top + i * h), s = shade(v)
    const [r, gr, b] = [rgb[s], rgb[s + 1], rgb[s + 2]]
    g.fillStyle = `rgb(${r},${gr},${b})`
    g.fillRect(x, y, Math.round(left + (j + 1) * w) - x - (w > 12 ? 1 : 0), Math.round(top + (i + 1) * h) - y - (h > 12 ? 1 : 0))
    const text = f.texts?.[i]?.[j]
    if (text === undefined || h < FONT + 2) return
    g.fillStyle = luminance(r, gr, b) > 0.179 ? '#000000' : '#ffffff'  // 4.58:1 at the least
    g.fillText(fit(text, w - 4), x + w / 2, y + h / 2 + 0.5)
  })
}
const luminance = (r, g, b) => {
  const line = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 }
  return 0.2126 * line(r) + 0.7152 * line(g) + 0.0722 * line(b)
}

// Every device pixel shows the largest cell under it: a mean would hide spikes.
const tiles = (f, g, { left, top, w, h, ratio }, rgb, shade, colours) => {
  const n = f.th - 1, m = f.tw - 1, pw = Math.max(1, Math.round((w - 3) * ratio)), ph = Math.max(1, Math.round((h - 3) * ratio))
  for (let i = 0; i < f.grid[0]; i += 1) for (let j = 0; j < f.grid[1]; j += 1) {
    const image = new ImageData(pw, ph)
    for (let y = 0; y < ph; y += 1) for (let x = 0; x < pw; x += 1) {
      const y0 = Math.floor(y * n / ph), y1 = Math.max(y0 + 1, Math.ceil((y + 1) * n / ph - 1e-9)), x0 = Math.floor(x * m / pw), x1 = Math.max(x0 + 1, Math.ceil((x + 1) * m / pw - 1e-9))
      let best = NaN
      const last = ph < n ? y1 : y0 + 1, end = pw < m ? x1 : x0 + 1
      for (let a = y0; a < last; a += 1) for (let b = x0; b < end; b += 1) {
        const v = f.cells[(i * f.th + a) * f.C + j * f.tw + b]
        if (!(v <= best)) best = Number.isNaN(v) ? best : v
      }
      if (Number.isNaN(best)) continue
      const s = shade(best), k = 4 * (y * pw + x)
      image.data.set(rgb.subarray(s, s + 3), k); image.data[k + 3] = 255
    }
    const tile = new OffscreenCanvas(pw, ph)
    tile.getContext('2d').putImageData(image, 0, 0)
    const x = left + j * w + 1, y = top + i * h + 1
    g.imageSmoothingEnabled = false
    g.drawImage(tile, x, y, pw / ratio, ph / ratio)
    g.strokeStyle = colours.line; g.lineWidth = 1; g.strokeRect(x - 0.5, y - 0.5, pw / ratio + 1, ph / ratio + 1)
  }
}

const axes = (f, g, { left, top, w, h, flat, band }, colours, mono, font) => {
  const [rows, columns] = f.grid
  g.fillStyle = colours.muted; g.font = `${FONT}px ${mono}`; g.textBaseline = 'middle'; g.textAlign = 'right'
  const every = Math.max(1, Math.ceil((FONT + 2) / h))
  f.rows.forEach((text, i) => { if ((f.upward ? rows - 1 - i : i) % every === 0) g.fillText(text, left - PAD, top + (i + 0.5) * h) })
  const skip = Math.max(1, Math.ceil((flat ? 4 : FONT + 3) / (flat ? w : w * Math.sin(0.66) + 0.001)))
  const above = f.labels === 'top', edge = above ? top - PAD : top + rows * h + PAD
  f.columns.forEach((text, j) => {
    if (j % skip) return
    g.save(); g.translate(left + (j + 0.5) * w, edge)
    if (flat) { g.textAlign = 'center'; g.textBaseline = above ? 'bottom' : 'top' }
    else { g.rotate(-0.66); g.textAlign = above ? 'left' : 'right'; g.textBaseline = 'middle' }
    g.fillText(text, 0, 0); g.restore()
  })
  g.font = `${FONT + 1}px ${font}`; g.fillStyle = colours.fg
  g.save(); g.translate(FONT, top + rows * h / 2); g.rotate(-Math.PI / 2); g.textAlign = 'center'; g.textBaseline = 'middle'; g.fillText(f.row_title, 0, 0); g.restore()
  g.textAlign = 'left'; g.textBaseline = 'alphabetic'
  g.fillText(f.column_title, left, above ? FONT : top + rows * h + band - 2)
}

const legend = (f, g, { left, top, h, W, H, w }, rgb, colours, font) => {
  g.font = `${FONT}px ${font}`
  const room = W - left - g.measureText(f.legend).width - 12
  const y = H - 24, length = Math.max(48, Math.min(160, room)), ticks = f.signed ? [f.low, 0, f.high] : [f.low, f.high]
  for (let x = 0; x < length; x += 1) { const s = 4 * Math.round(x / (length - 1) * 255); g.fillStyle = `rgb(${rgb[s]},${rgb[s + 1]},${rgb[s + 2]})`; g.fillRect(left + x, y, 1, 8) }
  g.strokeStyle = colours.line; g.lineWidth = 1; g.strokeRect(left - 0.5, y - 0.5, length + 1, 9)
  g.fillStyle = colours.muted; g.textBaseline = 'top'
  for (const v of ticks) {
    const x = left + (v - f.low) / ((f.high - f.low) || 1) * length
    g.textAlign = v === f.low ? 'left' : v === f.high ? 'right' : 'center'
    g.fillText(String(+v.toPrecision(2)).replace('-', '−'), x, y + 11)
  }
  g.textAlign = 'left'; g.textBaseline = 'middle'; g.fillText(f.legend, left + length + 8, y + 4)
  return left + length + 8 + g.measureText(f.legend).width  // where its words end
}

const overlay = (root, canvas) => {
  const f = root.figure, g = canvas.getContext('2d'), { left, top, w, h, ratio } = root.geometry
  g.setTransform(1, 0, 0, 1, 0, 0); g.drawImage(root.base, 0, 0); g.setTransform(ratio, 0, 0, ratio, 0, 0)
  const box = ([i, j], width, colour) => { g.lineWidth = width; g.strokeStyle = colour; g.strokeRect(left + j * w - 0.5, top + i * h - 0.5, w, h) }
  for (const at of f.marked ?? []) box(at, 1.5, root.colours.muted)
  if (root.hover) box(root.hover, 1.5, root.colours.fg)
  if (document.activeElement?.shadowRoot?.activeElement === canvas || canvas.matches(':focus-visible')) box(root.at, 1.5, root.colours.fg)
  if (f.pick) box(f.pick, 2.5, root.colours.accent)
}
