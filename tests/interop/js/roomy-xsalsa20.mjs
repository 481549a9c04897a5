// Import before @libp2p/pnet: keeps a defect of xsalsa20 1.2 from ending the process in the middle of a transfer.
//
// All its ciphers share one WebAssembly memory, and each keeps a view of it that goes dead when another one lets it
// grow. Where a view is dead, the memory is grown again by all that is needed. The two ciphers of one connection take
// turns at that until the memory's maximum, 64 MB, is reached and growing throws: seconds after the first flush of more
// than 640 KB. So it gets most of what it may have at once, and never grows.

import { createRequire } from 'node:module'

const PAGES = 900

const require = createRequire(import.meta.url)
const file = require.resolve('xsalsa20/xsalsa20.js')
const load = require(file)
require.cache[file].exports = (...given) => {
  const wasm = load(...given)
  wasm.memory.grow(PAGES)
  const { buffer } = wasm.memory
  return { ...wasm, memory: { buffer, grow () { throw new Error('more than 60 MB in one flush') } } }
}
