// A replica of go-ds-crdt on libp2p and bitswap, driven by JSON lines on stdin, telling by JSON lines on stdout.
//
//	replica DIRECTORY SETTINGS
//
// SETTINGS is JSON: topic, psk (text of a swarm.key file, or null), rebroadcast_s. DIRECTORY keeps its identity and its
// store, so that a replica that was killed goes on where it was. src/ipfsreg/testing/go_replica.py drives it.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	crdt "github.com/ipfs/go-ds-crdt"
	leveldb "github.com/ipfs/go-ds-leveldb"
	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

var cidText = regexp.MustCompile(`\bb[a-z2-7]{50,}\b`)

type settings struct {
	Topic        string  `json:"topic"`
	Psk          *string `json:"psk"`
	RebroadcastS float64 `json:"rebroadcast_s"`
}

// A call is one line of stdin; what it needs besides `do` depends on that.
type call struct {
	ID     int      `json:"id"`
	Do     string   `json:"do"`
	Key    string   `json:"key"`
	Value  []byte   `json:"value"`
	Ops    []change `json:"ops"`
	Prefix string   `json:"prefix"`
	Addr   string   `json:"addr"`
	Peer   string   `json:"peer"`
}

type change struct {
	Key   string `json:"key"`
	Value []byte `json:"value"` // null: delete
}

type replica struct {
	host  host.Host
	gater *conngater.BasicConnectionGater
	store *crdt.Datastore
	out   sync.Mutex
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(directory, text string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wanted settings
	if err := json.Unmarshal([]byte(text), &wanted); err != nil {
		return err
	}
	disk, err := leveldb.NewDatastore(filepath.Join(directory, "store"), nil)
	if err != nil {
		return err
	}
	defer disk.Close()
	r := &replica{}
	if r.gater, err = conngater.NewBasicConnectionGater(nil); err != nil {
		return err
	}
	if r.host, err = openHost(directory, wanted.Psk, r.gater); err != nil {
		return err
	}
	defer r.host.Close()
	gossip, err := pubsub.NewGossipSub(ctx, r.host)
	if err != nil {
		return err
	}
	blocks := blockstore.NewBlockstore(namespace.Wrap(disk, datastore.NewKey("/i")))
	exchange := bitswap.New(ctx, bsnet.NewFromIpfsHost(r.host), nil, blocks)
	defer exchange.Close()
	dag := merkledag.NewDAGService(blockservice.New(blocks, exchange))
	broadcaster, err := crdt.NewPubSubBroadcaster(ctx, gossip, wanted.Topic)
	if err != nil {
		return err
	}
	options := crdt.DefaultOptions()
	// Its workers apply tombstones without the lock under which they apply values; fewer of them race less.
	options.NumWorkers = 1
	options.RebroadcastInterval = time.Duration(wanted.RebroadcastS * float64(time.Second))
	r.store, err = crdt.New(disk, datastore.NewKey("/c"), dag, broadcaster, options)
	if err != nil {
		return err
	}
	defer r.store.Close()
	addrs := []string{}
	for _, addr := range r.host.Addrs() {
		addrs = append(addrs, addr.String())
	}
	r.tell(map[string]any{"event": "ready", "peer": r.host.ID().String(), "addrs": addrs})
	return r.serve(ctx)
}

// openHost listens on loopback, over TCP: with a pre-shared key nothing else is allowed.
func openHost(directory string, psk *string, gater *conngater.BasicConnectionGater) (host.Host, error) {
	key, err := identity(filepath.Join(directory, "identity"))
	if err != nil {
		return nil, err
	}
	options := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.ConnectionGater(gater),
		libp2p.DisableRelay(),
	}
	if psk != nil {
		decoded, err := pnet.DecodeV1PSK(strings.NewReader(*psk))
		if err != nil {
			return nil, err
		}
		options = append(options, libp2p.PrivateNetwork(decoded))
	}
	return libp2p.New(options...)
}

func identity(path string) (crypto.PrivKey, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		return crypto.UnmarshalPrivateKey(data)
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	if data, err = crypto.MarshalPrivateKey(key); err != nil {
		return nil, err
	}
	return key, os.WriteFile(path, data, 0o600)
}

func (r *replica) tell(message map[string]any) {
	line, err := json.Marshal(message)
	if err != nil {
		panic(err)
	}
	r.out.Lock()
	defer r.out.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

// serve answers one call after the other until stdin ends.
func (r *replica) serve(ctx context.Context) error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var asked call
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return err
		}
		result, err := r.answer(ctx, asked)
		if err != nil {
			r.tell(map[string]any{"id": asked.ID, "error": err.Error()})
		} else {
			r.tell(map[string]any{"id": asked.ID, "result": result})
		}
	}
	return lines.Err()
}

func (r *replica) answer(ctx context.Context, asked call) (any, error) {
	switch asked.Do {
	case "put":
		return nil, r.store.Put(ctx, datastore.NewKey(asked.Key), asked.Value)
	case "delete":
		return nil, r.store.Delete(ctx, datastore.NewKey(asked.Key))
	case "batch":
		return nil, r.batch(ctx, asked.Ops)
	case "get":
		value, err := r.store.Get(ctx, datastore.NewKey(asked.Key))
		if errors.Is(err, datastore.ErrNotFound) {
			return nil, nil
		}
		return value, err
	case "query":
		return r.query(ctx, asked.Prefix)
	case "heads":
		heads := []string{}
		for _, head := range r.store.InternalStats(ctx).Heads {
			// A CID up to v0.6.8; afterwards a struct that has one in it.
			heads = append(heads, cidText.FindString(fmt.Sprint(head)))
		}
		return heads, nil
	case "connect":
		info, err := peer.AddrInfoFromString(asked.Addr)
		if err != nil {
			return nil, err
		}
		return nil, r.host.Connect(ctx, *info)
	case "block", "unblock":
		return nil, r.setBlocked(asked.Peer, asked.Do == "block")
	}
	return nil, fmt.Errorf("no such call: %s", asked.Do)
}

func (r *replica) batch(ctx context.Context, ops []change) error {
	batch, err := r.store.Batch(ctx)
	if err != nil {
		return err
	}
	for _, op := range ops {
		if op.Value == nil {
			err = batch.Delete(ctx, datastore.NewKey(op.Key))
		} else {
			err = batch.Put(ctx, datastore.NewKey(op.Key), op.Value)
		}
		if err != nil {
			return err
		}
	}
	return batch.Commit(ctx)
}

func (r *replica) query(ctx context.Context, prefix string) (map[string][]byte, error) {
	results, err := r.store.Query(ctx, query.Query{Prefix: prefix})
	if err != nil {
		return nil, err
	}
	entries, err := results.Rest()
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for _, entry := range entries {
		found[entry.Key] = entry.Value
	}
	return found, nil
}

// setBlocked makes or ends a partition: no connection to or from a blocked peer comes about.
func (r *replica) setBlocked(text string, blocked bool) error {
	id, err := peer.Decode(text)
	if err != nil {
		return err
	}
	if !blocked {
		return r.gater.UnblockPeer(id)
	}
	if err := r.gater.BlockPeer(id); err != nil {
		return err
	}
	return r.host.Network().ClosePeer(id)
}
