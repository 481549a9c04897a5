// One js-libp2p peer, driven by JSON lines: a command a line comes in on stdin, an answer a line goes out on stdout.
//
//   {"id": 1, "do": "dial", "addr": "/ip4/…/p2p/…"}   ->   {"id": 1, "result": {…}} or {"id": 1, "error": "…"}
//
// Commands run side by side. What nobody asked for comes without an id: {"event": "message", …}. The first line is
// {"event": "ready", …}. The peer ends with its stdin. Its one argument is JSON:
//
//   psk       text of a swarm.key file; without it the peer is on no private network
//   kad       the protocol of its DHT, whose server it is; without it there is no DHT
//   helia     whether it has blocks, and bitswap to exchange them
//   meshed    whether it has a mesh in pubsub; without one it tells others of messages, and they have to ask
//
// It listens on loopback alone and knows nobody until it is told.

import './roomy-xsalsa20.mjs'
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'
import { gossipsub } from '@libp2p/gossipsub'
import { identify, identifyPush } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { preSharedKey } from '@libp2p/pnet'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'

// The opener says in 8 bytes each, big-endian, how much it wants and how much it sends; then each side, at once, sends
// content and its sha256. Who has sent and received all of it ends.
const BULK = '/ipfsreg-interop/bulk/1.0.0'
const PIECE = 64 * 1024
const HASH_BYTES = 32

const settings = JSON.parse(process.argv[2] ?? '{}')

const options = {
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  // Without this nothing on loopback would be dialled or believed where defaults are those of the public network.
  connectionGater: { denyDialMultiaddr: () => false },
  connectionManager: { reconnectRetries: 0 },
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    ping: ping(),
    pubsub: gossipsub({
      allowPublishToZeroTopicPeers: true,
      fallbackToFloodsub: false,
      ...(settings.meshed ? {} : { D: 0, Dlo: 0, Dhi: 0, Dscore: 0, Dout: 0 })
    })
  }
}
if (settings.psk) {
  // The two ends may share one core with a whole test run: a second to exchange nonces is short then.
  options.connectionProtector = preSharedKey({ psk: new TextEncoder().encode(settings.psk), timeout: 10_000 })
}
if (settings.kad) {
  options.services.dht = kadDHT({ protocol: settings.kad, clientMode: false, peerInfoMapper: passthroughMapper })
}

let helia, files
if (settings.helia) {
  const { createHeliaLight } = await import('helia')
  const { withLibp2pLight } = await import('@helia/libp2p')
  const { withBitswap } = await import('@helia/bitswap')
  const { unixfs } = await import('@helia/unixfs')
  helia = await withBitswap(withLibp2pLight(createHeliaLight(), options)).start()
  files = unixfs(helia)
}
const node = helia ? helia.libp2p : await createLibp2p(options)
if (settings.kad) await node.services.dht.setMode('server')

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

// ------------------------------------------------------------------------------------------------------ bulk streams

async function sendContent (stream, size) {
  const hash = createHash('sha256')
  const piece = randomBytes(PIECE)
  for (let sent = 0; sent < size;) {
    // Every piece is another one, so that one lost, doubled or out of place shows.
    piece.writeBigUInt64BE(BigInt(sent))
    const part = Buffer.from(piece.subarray(0, Math.min(PIECE, size - sent)))
    hash.update(part)
    if (!stream.send(part)) await stream.onDrain()
    sent += part.length
  }
  if (!stream.send(hash.digest())) await stream.onDrain()
}

async function * buffers (stream) {
  for await (const data of stream) {
    if (data instanceof Uint8Array) yield Buffer.from(data.buffer, data.byteOffset, data.byteLength)
    else for (const part of data) yield Buffer.from(part.buffer, part.byteOffset, part.byteLength)
  }
}

// Reads a stream in pieces of any size.
class Reader {
  constructor (stream) {
    this.pieces = buffers(stream)
    this.rest = Buffer.alloc(0)
  }

  // 1 to *most* bytes, or null at the end.
  async some (most) {
    if (!this.rest.length) {
      const { value, done } = await this.pieces.next()
      if (done) return null
      this.rest = value
    }
    const piece = this.rest.subarray(0, most)
    this.rest = this.rest.subarray(piece.length)
    return piece
  }

  async exactly (size) {
    const pieces = []
    for (let left = size; left > 0;) {
      const piece = await this.some(left)
      if (!piece) throw new Error(`the stream ended ${left} bytes before it should`)
      pieces.push(piece)
      left -= piece.length
    }
    return Buffer.concat(pieces)
  }
}

async function receiveContent (reader, size) {
  const hash = createHash('sha256')
  for (let left = size; left > 0;) {
    const piece = await reader.some(left)
    if (!piece) throw new Error(`the stream ended ${left} bytes before it should`)
    hash.update(piece)
    left -= piece.length
  }
  if (!hash.digest().equals(await reader.exactly(HASH_BYTES))) throw new Error(`the hash of ${size} bytes is wrong`)
}

async function bothWays (stream, reader, send, want) {
  await Promise.all([receiveContent(reader, want), sendContent(stream, send)])
  await stream.close()
  if (await reader.some(1)) throw new Error('more came than was said')
  return want
}

await node.handle(BULK, async (stream) => {
  try {
    const reader = new Reader(stream)
    const head = await reader.exactly(16)
    const [send, want] = [head.readBigUInt64BE(0), head.readBigUInt64BE(8)].map(Number)
    say({ event: 'bulk', received: await bothWays(stream, reader, send, want) })
  } catch (error) {
    say({ event: 'bulk', error: String(error) })
    stream.abort(error)
  }
})

// ----------------------------------------------------------------------------------------------------------- events

const identified = new Map() // peer -> what identify told
const waiting = new Map() // peer -> those who wait for that

node.addEventListener('peer:identify', ({ detail }) => {
  const peer = detail.peerId.toString()
  identified.set(peer, {
    agent: detail.agentVersion,
    protocols: detail.protocols,
    listen: detail.listenAddrs.map(String),
    observed: detail.observedAddr?.toString()
  })
  for (const wake of waiting.get(peer) ?? []) wake()
  waiting.delete(peer)
})
for (const change of ['connect', 'disconnect']) {
  node.addEventListener(`peer:${change}`, ({ detail }) => say({ event: change, peer: detail.toString() }))
}
node.services.pubsub.addEventListener('gossipsub:message', ({ detail: { msg, propagationSource } }) => {
  const { topic, data, type, from } = msg
  say({
    event: 'message',
    topic,
    type,
    data: Buffer.from(data).toString('base64'),
    from: from?.toString(),
    by: propagationSource.toString()
  })
})

// --------------------------------------------------------------------------------------------------------- commands

const dht = () => {
  if (!node.services.dht) throw new Error('this peer has no DHT')
  return node.services.dht
}

const commands = {
  async dial ({ addr }) {
    const connection = await node.dial(multiaddr(addr), { signal: AbortSignal.timeout(15_000) })
    return { peer: connection.remotePeer.toString(), encryption: connection.encryption, muxer: connection.multiplexer }
  },
  async hangUp ({ peer }) {
    await node.hangUp(peerIdFromString(peer))
  },
  async connections () {
    return node.getConnections().map((one) => ({ peer: one.remotePeer.toString(), addr: one.remoteAddr.toString() }))
  },
  async ping ({ peer }) {
    return await node.services.ping.ping(peerIdFromString(peer), { signal: AbortSignal.timeout(15_000) })
  },
  async identified ({ peer }) {
    while (!identified.has(peer)) {
      await new Promise((wake) => waiting.set(peer, [...(waiting.get(peer) ?? []), wake]))
    }
    return identified.get(peer)
  },
  // Exchange content both ways on one stream; return how much came.
  async bulk ({ peer, send, want }) {
    const stream = await node.dialProtocol(peerIdFromString(peer), BULK, { signal: AbortSignal.timeout(15_000) })
    const head = Buffer.alloc(16)
    head.writeBigUInt64BE(BigInt(want), 0)
    head.writeBigUInt64BE(BigInt(send), 8)
    stream.send(head)
    return { received: await bothWays(stream, new Reader(stream), send, want) }
  },

  async subscribe ({ topic }) {
    node.services.pubsub.subscribe(topic)
  },
  async subscribers ({ topic }) {
    return node.services.pubsub.getSubscribers(topic).map(String)
  },
  async mesh ({ topic }) {
    return node.services.pubsub.getMeshPeers(topic)
  },
  async publish ({ topic, data }) {
    const { recipients } = await node.services.pubsub.publish(topic, Buffer.from(data, 'base64'))
    return { recipients: recipients.map(String) }
  },

  async provide ({ cid }) {
    const errors = []
    let reached = 0
    for await (const event of dht().provide(CID.parse(cid), { signal: AbortSignal.timeout(20_000) })) {
      if (event.name === 'QUERY_ERROR') errors.push(String(event.error))
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'ADD_PROVIDER') reached += 1
    }
    return { reached, errors }
  },
  async findProviders ({ cid }) {
    const found = {}
    for await (const event of dht().findProviders(CID.parse(cid), { signal: AbortSignal.timeout(20_000) })) {
      if (event.name !== 'PROVIDER') continue
      for (const provider of event.providers) found[provider.id.toString()] = provider.multiaddrs.map(String)
    }
    return found
  },
  async findPeer ({ peer }) {
    for await (const event of dht().findPeer(peerIdFromString(peer), { signal: AbortSignal.timeout(20_000) })) {
      if (event.name === 'FINAL_PEER') return event.peer.multiaddrs.map(String)
    }
    return null
  },
  async dhtPeers () {
    return dht().routingTable.size
  },

  // Import a file with any of the profiles in use; return its root.
  async add ({ path, cidVersion = 1, rawLeaves = true, chunk = 1048576, width = 1024, trickled = false }) {
    const { fixedSize } = await import('ipfs-unixfs-importer/chunker')
    const { balanced, trickle } = await import('ipfs-unixfs-importer/layout')
    const root = await files.addByteStream(createReadStream(path), {
      cidVersion,
      rawLeaves,
      chunker: fixedSize({ chunkSize: chunk }),
      layout: (trickled ? trickle : balanced)({ maxChildrenPerNode: width }),
      reduceSingleLeafToSelf: true
    })
    return root.toString()
  },
  // Fetch a whole file from whoever has it.
  async cat ({ cid, seconds = 60 }) {
    const hash = createHash('sha256')
    let size = 0
    for await (const piece of files.cat(CID.parse(cid), { signal: AbortSignal.timeout(seconds * 1000) })) {
      hash.update(piece)
      size += piece.length
    }
    return { sha256: hash.digest('hex'), size }
  }
}

async function run ({ id, do: name, ...wanted }) {
  try {
    if (!(name in commands)) throw new Error(`no command ${name}`)
    say({ id, result: (await commands[name](wanted)) ?? null })
  } catch (error) {
    say({ id, error: `${error.name}: ${error.message}` })
  }
}

say({ event: 'ready', peer: node.peerId.toString(), addrs: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  run(JSON.parse(line))
}
process.exit(0)
