package natstest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy stands between clients and a server and knows a publish when it sees one, so that a test can do something between two
// messages of one burst, or lose exactly one.
type Proxy struct {
	// URL is where clients connect.
	URL string

	t        testing.TB
	target   string
	listener net.Listener

	mu        sync.Mutex
	onPublish func(Publish) Fate
	delay     time.Duration
	conns     map[net.Conn]bool
	closed    bool
	running   sync.WaitGroup
}

// Publish is one message on its way from a client to the server.
type Publish struct {
	Subject, Reply string
	// Payload has the headers and the data.
	Payload []byte
}

// Fate is what becomes of a publish.
type Fate int

const (
	// Pass lets it through.
	Pass Fate = iota
	// Lose drops it, and nobody is told.
	Lose
	// Cut closes the connection instead.
	Cut
	// PassAndCut closes the connection and lets it through all the same: the answer finds nobody.
	PassAndCut
)

// NewProxy starts a proxy for the server at target (a nats:// URL), which ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		URL: "nats://" + l.Addr().String(), t: t, target: strings.TrimPrefix(target, "nats://"), listener: l, conns: make(map[net.Conn]bool),
	}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		l.Close()
		p.CutAll()
		p.running.Wait()
	})
	return p
}

// OnPublish sets what is asked before each publish is passed on; nil passes all. It is called in the order of a connection's publishes,
// and what it does is done before the server sees the message.
func (p *Proxy) OnPublish(f func(Publish) Fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onPublish = f
}

// Delay makes each way last that much longer.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// CutAll closes all connections.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		closed := p.closed
		p.mu.Unlock()
		if closed {
			client.Close()
			server.Close()
			continue
		}
		end := func() {
			client.Close()
			server.Close()
			p.mu.Lock()
			delete(p.conns, client)
			delete(p.conns, server)
			p.mu.Unlock()
		}
		p.running.Go(func() { defer end(); p.upstream(client, server) })
		p.running.Go(func() { defer end(); p.downstream(server, client) })
	}
}

func (p *Proxy) settings() (func(Publish) Fate, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.onPublish, p.delay
}

// delayed writes to w what is sent to it, each piece so much later; order is kept, and pieces travel together.
func (p *Proxy) delayed(w io.Writer) (send func([]byte), stop func()) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1<<16)
	var writing sync.WaitGroup
	writing.Go(func() {
		for piece := range pieces {
			time.Sleep(time.Until(piece.due))
			if _, err := w.Write(piece.data); err != nil {
				for range pieces {
				}
			}
		}
	})
	send = func(data []byte) {
		_, delay := p.settings()
		pieces <- piece{time.Now().Add(delay), bytes.Clone(data)}
	}
	return send, func() { close(pieces); writing.Wait() }
}

func (p *Proxy) downstream(server, client net.Conn) {
	send, stop := p.delayed(client)
	defer stop()
	buf := make([]byte, 32<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			send(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// upstream passes the client's lines on: only PUB and HPUB are followed by a payload.
func (p *Proxy) upstream(client, server net.Conn) {
	send, stop := p.delayed(server)
	defer stop()
	r := bufio.NewReaderSize(client, 64<<10)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		fields := strings.Fields(line)
		if len(fields) < 3 || (fields[0] != "PUB" && fields[0] != "HPUB") {
			send([]byte(line))
			continue
		}
		size, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			p.t.Errorf("proxy: %q: %v", line, errors.Unwrap(err))
			return
		}
		payload := make([]byte, size+2)
		if _, err := io.ReadFull(r, payload); err != nil {
			return
		}
		publish := Publish{Subject: fields[1], Payload: payload[:size]}
		sizes := 1
		if fields[0] == "HPUB" {
			sizes = 2
		}
		if len(fields) == 3+sizes {
			publish.Reply = fields[2]
		}
		fate := Pass
		if onPublish, _ := p.settings(); onPublish != nil {
			fate = onPublish(publish)
		}
		switch fate {
		case Lose:
			continue
		case Cut:
			return
		case PassAndCut:
			client.Close()
		}
		send(append([]byte(line), payload...))
		if fate == PassAndCut {
			return
		}
	}
}
