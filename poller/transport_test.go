package poller

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// crowd is a server whose polls wait until they are let go, with the connections that came
// to it.
type crowd struct {
	*httptest.Server
	account     Account
	connections atomic.Int64 // so far
	open        atomic.Int64 // of them
	waiting     atomic.Int64
	registered  atomic.Int64
	letGo       sync.Map // chan struct{} by queue
	answer      func(w http.ResponseWriter, queue string)
}

const oneEvent = `{"result":"success","msg":"","events":[{"type":"a","id":1}],"queue_id":"q"}` + "\n"

// newCrowd starts one that speaks HTTP/2 and allows so many streams; 0: as many as
// net/http does.
func newCrowd(t *testing.T, streams int) *crowd {
	t.Helper()
	c := new(crowd)
	c.answer = func(w http.ResponseWriter, _ string) { io.WriteString(w, oneEvent) }
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Proto != "HTTP/2.0" {
			t.Errorf("spoke %s", r.Proto)
		}
		if r.Method == "POST" {
			c.registered.Add(1)
			io.WriteString(w, `{"result":"success","msg":"","queue_id":"q","last_event_id":-1}`)
			return
		}
		queue := r.FormValue("queue_id")
		c.waiting.Add(1)
		defer c.waiting.Add(-1)
		select {
		case <-c.gate(queue):
		case <-r.Context().Done():
			return
		}
		c.answer(w, queue)
	}))
	c.EnableHTTP2 = true
	c.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: streams}
	c.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			c.connections.Add(1)
			c.open.Add(1)
		case http.StateClosed:
			c.open.Add(-1)
		}
	}
	c.StartTLS()
	t.Cleanup(c.Close)
	bundle := write(t, filepath.Join(t.TempDir(), "ca.pem"),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})))
	c.account = Account{Email: "bot@example.com", Key: testKey, Site: c.URL, CertBundle: bundle}
	return c
}

func (c *crowd) gate(queue string) chan struct{} {
	g, _ := c.letGo.LoadOrStore(queue, make(chan struct{}))
	return g.(chan struct{})
}

func (c *crowd) client() *Client {
	return &Client{Account: func() (Account, error) { return c.account, nil }}
}

// poll polls and gives the answer's events.
func poll(ctx context.Context, c *Client, queue string) (events int, err error) {
	a, err := c.events(ctx, Position{queue, -1}, false, defaultPatience)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	for {
		b, err := a.Next(ctx)
		if err != nil {
			return events, err
		}
		if events += len(b.Events); !b.More {
			return events, nil
		}
	}
}

// until waits until something is so.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// TestManyPolls: polls of one host share a connection, and where the server allows no more
// streams on it, there is another one. None waits for the end of another, and neither does
// a register.
func TestManyPolls(t *testing.T) {
	for _, test := range []struct {
		streams     int
		least, most int64 // connections, when all wait
	}{
		{0, 1, 1},
		{10, 5, 20},
	} {
		t.Run(fmt.Sprint(test.streams), func(t *testing.T) {
			const polls = 50
			c := newCrowd(t, test.streams)
			first := c.client() // so that there is a connection, and it is shared from the beginning
			if _, err := first.register(t.Context(), DefaultOptions(), false, nil); err != nil {
				t.Fatal(err)
			}
			errs := make(chan error, polls)
			for i := range polls {
				go func() {
					n, err := poll(t.Context(), c.client(), fmt.Sprint(i))
					if err == nil && n != 1 {
						err = fmt.Errorf("%d events", n)
					}
					errs <- err
				}()
			}
			until(t, "all polls to wait at once", func() bool { return c.waiting.Load() == polls })
			// Polls that find no room at the same time each make a connection; those that
			// turn out not to be needed are closed at once.
			until(t, "the connections that are too many to end", func() bool {
				n := c.open.Load()
				return n >= test.least && n <= test.most
			})
			// On a connection of which the limit has not come yet the server refuses one too
			// many. A poll is sent again by itself, a register by who asked for it.
			until(t, "a register beside them", func() bool {
				_, err := c.client().register(t.Context(), DefaultOptions(), false, nil)
				return err == nil
			})
			for i := range polls {
				close(c.gate(fmt.Sprint(i)))
			}
			for range polls {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if n := c.registered.Load(); n != 2 {
				t.Errorf("%d queues, want 2", n)
			}
		})
	}
}

// TestPollGivenUp: one poll that is given up, or whose patience is over, or whose answer
// is not read to its end, leaves the others on its connection alone, and the connection to
// the next.
func TestPollGivenUp(t *testing.T) {
	c := newCrowd(t, 0)
	c.answer = func(w http.ResponseWriter, queue string) {
		if queue == "endless" {
			for {
				if _, err := io.WriteString(w, `{"result":"success","msg":"","events":[{"type":"a","id":1},`); err != nil {
					return
				}
				w.(http.Flusher).Flush()
			}
		}
		io.WriteString(w, oneEvent)
	}
	one, other := c.client(), c.client()
	if _, err := one.register(t.Context(), DefaultOptions(), false, nil); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() { _, err := poll(t.Context(), other, "other"); waits <- err }()
	until(t, "the other poll", func() bool { return c.waiting.Load() == 1 })

	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error, 1)
	go func() { _, err := poll(ctx, one, "one"); given <- err }()
	until(t, "the poll", func() bool { return c.waiting.Load() == 2 })
	cancel()
	if err := <-given; err != context.Canceled {
		t.Errorf("one that is given up gives %v", err)
	}
	if _, err := one.events(t.Context(), Position{"one", -1}, false, 10*time.Millisecond); err == nil {
		t.Error("one without patience is answered")
	}
	close(c.gate("endless"))
	a, err := one.events(t.Context(), Position{"endless", -1}, false, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	until(t, "the server to know of all that", func() bool { return c.waiting.Load() == 1 })

	close(c.gate("one"))
	if n, err := poll(t.Context(), one, "one"); n != 1 || err != nil {
		t.Errorf("the next poll: %d events, %v", n, err)
	}
	close(c.gate("other"))
	if err := <-waits; err != nil {
		t.Errorf("the other poll: %v", err)
	}
	if n := c.connections.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestServerLeaves: a server that wants to end a connection (nginx does behind 1,000
// requests) lets the polls on it come to their end, and the next ones find another.
func TestServerLeaves(t *testing.T) {
	c := newCrowd(t, 0)
	c.answer = func(w http.ResponseWriter, queue string) {
		if queue == "last" {
			w.Header().Set("Connection", "close") // to net/http's server: GOAWAY
		}
		io.WriteString(w, oneEvent)
	}
	waits := make(chan error, 1)
	go func() { _, err := poll(t.Context(), c.client(), "waits"); waits <- err }()
	until(t, "the poll that waits", func() bool { return c.waiting.Load() == 1 })
	close(c.gate("last"))
	for range 3 {
		if n, err := poll(t.Context(), c.client(), "last"); n != 1 || err != nil {
			t.Errorf("%d events, %v", n, err)
		}
	}
	close(c.gate("waits"))
	if err := <-waits; err != nil {
		t.Errorf("the poll that waited: %v", err)
	}
	if n := c.connections.Load(); n < 2 {
		t.Errorf("%d connections: the server did not end any", n)
	}
}

// TestAnswerNotRead: an answer that nobody reads holds up neither other answers on the
// same connection nor polls, and there is no more of it here than its window.
func TestAnswerNotRead(t *testing.T) {
	const elements, size = 3000, 10 << 10 // 30 MB
	c := newCrowd(t, 0)
	var wrote atomic.Int64 // of the one that is not read
	c.answer = func(w http.ResponseWriter, queue string) {
		n := 0
		for i := range elements {
			text := fmt.Sprintf(`,{"type":"a","id":%d,"text":"%s"}`, i, strings.Repeat("x", size))
			if i == 0 {
				text = `{"result":"success","msg":"","events":[` + text[1:]
			}
			n, _ = io.WriteString(w, text)
			if queue == "slow" {
				wrote.Add(int64(n))
			}
		}
		io.WriteString(w, `],"queue_id":"q"}`)
	}
	close(c.gate("slow"))
	close(c.gate("quick"))
	slow := c.client()
	a, err := slow.events(t.Context(), Position{"slow", -1}, false, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	until(t, "the window to fill", func() bool { return wrote.Load() >= streamWindow-4*size })
	for range 3 {
		if n, err := poll(t.Context(), c.client(), "quick"); n != elements || err != nil {
			t.Errorf("beside one that is not read: %d events, %v", n, err)
		}
	}
	// What the server has taken is in its buffers, and in our window.
	if n := wrote.Load(); n > 2*streamWindow {
		t.Errorf("%d bytes of an answer that nobody reads are on their way", n)
	}
	n := 0
	for more := true; more; {
		b, err := a.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n += len(b.Events)
		more = b.More
	}
	if n != elements {
		t.Errorf("the one that was not read has %d events, want %d", n, elements)
	}
	if n := c.connections.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestTransportShared: accounts of the same settings have the same transport, and a bundle
// that was renewed makes another one.
func TestTransportShared(t *testing.T) {
	dir := t.TempDir()
	one, key := certificate(t, "one")
	two, _ := certificate(t, "two")
	bundle, same := write(t, filepath.Join(dir, "ca.pem"), one), write(t, filepath.Join(dir, "same.pem"), one)
	mine := write(t, filepath.Join(dir, "mine.pem"), one+key)
	get := func(a Account) *http.Transport {
		t.Helper()
		shared, err := sharedTransport(a)
		if err != nil {
			t.Fatal(err)
		}
		return shared
	}
	all := []Account{{}, {CertBundle: bundle}, {Insecure: true}, {ClientCert: mine}, {CertBundle: bundle, ClientCert: mine}}
	for i, a := range all {
		a.Email, a.Site = "ada@example.com", "https://a.example.com"
		first := get(a)
		a.Email, a.Site = "bob@example.com", "https://b.example.com"
		if get(a) != first {
			t.Errorf("%+v: two accounts do not share", all[i])
		}
		for _, b := range all[:i] {
			if get(b) == first {
				t.Errorf("%+v and %+v share", a, b)
			}
		}
	}
	before := get(Account{CertBundle: bundle})
	if get(Account{CertBundle: same}) != before {
		t.Error("the same authorities in another file do not share")
	}
	write(t, bundle, two)
	if get(Account{CertBundle: bundle}) == before {
		t.Error("a renewed bundle is not seen")
	}
}

// blackHole is a connection that may begin to swallow all, as one does whose other end has
// vanished.
type blackHole struct {
	net.Conn
	vanished *atomic.Bool
	closed   chan struct{}
	once     *sync.Once
}

func (b blackHole) Write(p []byte) (int, error) {
	if b.vanished.Load() {
		return len(p), nil
	}
	return b.Conn.Write(p)
}

func (b blackHole) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.vanished.Load() {
		<-b.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (b blackHole) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Conn.Close()
}

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

// TestPeerVanishes: a connection whose other end has vanished is closed before the
// patience of a poll on it is over, and the next polls make another. A poll that waits
// while the other end lives is not disturbed.
func TestPeerVanishes(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil) // whose certificate is used
	cert.StartTLS()
	defer cert.Close()
	synctest.Test(t, func(t *testing.T) {
		listener := make(pipes)
		var waiting atomic.Int64
		srv := &http.Server{TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Proto != "HTTP/2.0" {
					t.Errorf("spoke %s", r.Proto)
				}
				waiting.Add(1)
				defer waiting.Add(-1)
				select {
				case <-time.After(80 * time.Second): // longer than a heartbeat of Zulip's
					io.WriteString(w, oneEvent)
				case <-r.Context().Done():
				}
			})}
		go srv.ServeTLS(listener, "", "")
		defer srv.Close()
		defer close(listener)

		var vanished *atomic.Bool // of the newest connection
		dials := 0
		transport, err := newTransport(Account{Insecure: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		transport.Proxy = nil
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			vanished = new(atomic.Bool)
			dials++
			listener <- theirs
			return blackHole{ours, vanished, make(chan struct{}), new(sync.Once)}, nil
		}
		defer transport.CloseIdleConnections()
		client := func() *Client {
			return &Client{Transport: transport, Account: func() (Account, error) {
				return Account{Email: "bot@example.com", Key: testKey, Site: "https://zulip.test"}, nil
			}}
		}
		if n, err := poll(t.Context(), client(), "q"); n != 1 || err != nil || dials != 1 {
			t.Errorf("while all is well: %d events, %v, on connection %d", n, err, dials)
		}
		began := time.Now()
		const polls = 3
		errs := make(chan error, polls)
		for range polls {
			go func() {
				_, err := client().events(t.Context(), Position{"q", -1}, false, defaultPatience)
				errs <- err
			}()
		}
		synctest.Wait()
		if n := waiting.Load(); n != polls || dials != 1 {
			t.Fatalf("%d polls wait on %d connections, want %d on 1", n, dials, polls)
		}
		vanished.Store(true)
		for range polls {
			if err := <-errs; err == nil {
				t.Error("a poll into the void is answered")
			}
		}
		if took := time.Since(began); took > 75*time.Second {
			t.Errorf("that the other end has vanished is known after %v", took)
		}
		if n, err := poll(t.Context(), client(), "q"); n != 1 || err != nil || dials != 2 {
			t.Errorf("behind that: %d events, %v, on connection %d", n, err, dials)
		}
	})
}

// TestNotSentTwice: what changes something leaves once, whatever the server does with the
// stream it is on: a second register would make a queue that nobody knows of.
func TestNotSentTwice(t *testing.T) {
	const protocolError, refusedStream = 0x1, 0x7 // RFC 9113, section 7
	for name, code := range map[string]uint32{"refused": refusedStream, "breach of the protocol": protocolError} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(nil) // whose certificate is used
			srv.StartTLS()
			defer srv.Close()
			listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: srv.TLS.Certificates,
				NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			var heads atomic.Int64
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					go resets(conn, code, &heads)
				}
			}()
			c := &Client{Account: func() (Account, error) {
				return Account{Email: "bot@example.com", Key: testKey, Site: "https://" + listener.Addr().String(),
					Insecure: true}, nil
			}}
			for sent := int64(1); sent <= 3; sent++ {
				if _, err := c.register(t.Context(), DefaultOptions(), false, nil); err == nil {
					t.Fatal("it is answered")
				} else if text := err.Error(); strings.Contains(text, "GetBody") {
					t.Errorf("no text for a person: %s", text)
				}
				if n := heads.Load(); n != sent {
					t.Fatalf("%d requests have left for %d registers", n, sent)
				}
			}
		})
	}
}

// resets is a server of HTTP/2 (RFC 9113) that resets each stream.
func resets(conn net.Conn, code uint32, heads *atomic.Int64) {
	defer conn.Close()
	frame := func(kind byte, stream uint32, payload []byte) {
		head := make([]byte, 9, 9+len(payload))
		head[2], head[3] = byte(len(payload)), kind // no flags, and short
		binary.BigEndian.PutUint32(head[5:], stream)
		conn.Write(append(head, payload...))
	}
	const headers, reset, settings = 0x1, 0x3, 0x4
	if _, err := io.CopyN(io.Discard, conn, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
		return
	}
	frame(settings, 0, nil)
	for head := make([]byte, 9); ; {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		length := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
		if _, err := io.CopyN(io.Discard, conn, length); err != nil {
			return
		}
		if head[3] == headers {
			heads.Add(1)
			frame(reset, binary.BigEndian.Uint32(head[5:]), binary.BigEndian.AppendUint32(nil, code))
		}
	}
}
