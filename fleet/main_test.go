package fleet_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/fleet"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	if url := os.Getenv("FLEET_TEST_URL"); url != "" {
		holdUntilKilled(url)
	}
	natstest.Parallel(8)
	os.Exit(m.Run())
}

// holdUntilKilled is another instance, in a process of its own: it acquires the realm and
// says so, and then answers each line on its standard input with whether it still holds
// it.
func holdUntilKilled(url string) {
	nc, err := stream.Connect(context.Background(), stream.ConnectConfig{URL: url})
	if err == nil {
		ttl, _ := time.ParseDuration(os.Getenv("FLEET_TEST_TTL"))
		var i *fleet.Instance
		if i, err = fleet.NewInstance(fleet.Config{Conn: nc, Writer: "child", TTL: ttl}); err == nil {
			var l *fleet.Lease
			if l, err = i.Acquire(context.Background(), "acme", 1, nil); err == nil {
				fmt.Println("acquired")
				for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
					fmt.Println("held", l.Held())
				}
				os.Exit(0)
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// child is that process.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startChild(t *testing.T, url string, ttl time.Duration) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FLEET_TEST_URL="+url, "FLEET_TEST_TTL="+ttl.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd, in, bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line := c.line(t); line != "acquired" {
		t.Fatalf("the child says %q", line)
	}
	return c
}

func (c *child) line(t *testing.T) string {
	t.Helper()
	if !c.out.Scan() {
		t.Fatalf("the child says nothing more: %v", c.out.Err())
	}
	return c.out.Text()
}

func (c *child) held(t *testing.T) string {
	t.Helper()
	if _, err := io.WriteString(c.in, "?\n"); err != nil {
		t.Fatal(err)
	}
	return c.line(t)
}

func connect(t *testing.T, url string) *stream.Conn {
	t.Helper()
	nc, err := stream.Connect(t.Context(), stream.ConnectConfig{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// config is for a writer with a connection of its own.
func config(t *testing.T, url, writer string, ttl time.Duration) fleet.Config {
	t.Helper()
	return fleet.Config{Conn: connect(t, url), Writer: writer, TTL: ttl, Log: natstest.Log(t)}
}

// instance makes one that is closed when the test ends.
func instance(t *testing.T, cfg fleet.Config) *fleet.Instance {
	t.Helper()
	i, err := fleet.NewInstance(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = i.Close(ctx)
	})
	return i
}

// acquire waits for the realm acme, for an instance of its own.
func acquire(t *testing.T, cfg fleet.Config) *fleet.Lease {
	t.Helper()
	return acquireOf(t, instance(t, cfg))
}

func acquireOf(t *testing.T, i *fleet.Instance) *fleet.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := i.Acquire(ctx, "acme", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// waiting is an Acquire under way.
type waiting struct {
	standby  chan fleet.Holder
	acquired chan *fleet.Lease
}

func acquireLater(t *testing.T, cfg fleet.Config) waiting {
	t.Helper()
	return acquireLaterOf(t, instance(t, cfg))
}

func acquireLaterOf(t *testing.T, i *fleet.Instance) waiting {
	t.Helper()
	w := waiting{make(chan fleet.Holder, 10), make(chan *fleet.Lease, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	var running sync.WaitGroup
	running.Go(func() {
		l, err := i.Acquire(ctx, "acme", 1, func(h fleet.Holder) { w.standby <- h })
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		w.acquired <- l
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

// stands waits until it stands by, and says for whom.
func (w waiting) stands(t *testing.T) fleet.Holder {
	t.Helper()
	select {
	case h := <-w.standby:
		return h
	case l := <-w.acquired:
		t.Fatalf("it has a lease, or none (%v), and should stand by", l != nil)
		return fleet.Holder{}
	}
}

func (w waiting) lease(t *testing.T) *fleet.Lease {
	t.Helper()
	l := <-w.acquired
	if l == nil {
		t.Fatal("no lease")
	}
	return l
}

// key is the newest message on a subject of the bucket.
func key(t *testing.T, js jetstream.JetStream, name string) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := js.Stream(t.Context(), "KV_zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(t.Context(), "$KV.zulip_bridge."+name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// desk is an instance with all that its process wants: for each realm somebody who acquires
// it, works until asked or until the lease is lost, and acquires it again.
type desk struct {
	*fleet.Instance
	all *desks

	mu     sync.Mutex
	leases map[string]*fleet.Lease
	got    int // leases
	asked  int // leases that were released since somebody asked
	lost   int
	ctx    context.Context // until stop
	stop   context.CancelFunc
	work   sync.WaitGroup
}

// desks are all of a test; together they see that no two hold a realm.
type desks struct {
	t    *testing.T
	mu   sync.Mutex
	all  []*desk
	work time.Duration // what is in hand when somebody asks
}

func (d *desks) open(cfg fleet.Config, realms ...string) *desk {
	d.t.Helper()
	return d.openOn(instance(d.t, cfg), realms...)
}

func (d *desks) openOn(i *fleet.Instance, realms ...string) *desk {
	k := &desk{all: d, leases: map[string]*fleet.Lease{}, Instance: i}
	k.ctx, k.stop = context.WithCancel(d.t.Context())
	d.mu.Lock()
	d.all = append(d.all, k)
	d.mu.Unlock()
	k.wants(realms...)
	d.t.Cleanup(func() { k.stop(); k.work.Wait() })
	return k
}

// wants takes these realms when they are to be had, and again whenever they are away.
func (k *desk) wants(realms ...string) {
	for _, realm := range realms {
		k.work.Go(func() { k.serve(k.ctx, realm) })
	}
}

func (k *desk) serve(ctx context.Context, realm string) {
	for {
		l, err := k.Acquire(ctx, realm, 1, nil)
		if err != nil {
			if ctx.Err() == nil {
				k.all.t.Error(err)
			}
			return
		}
		k.all.alone(k, realm, l)
		k.mu.Lock()
		k.leases[realm] = l
		k.got++
		k.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-l.Context().Done():
			k.mu.Lock()
			k.lost++
			k.mu.Unlock()
		case <-l.Asked().Done():
			time.Sleep(k.all.work)
			k.mu.Lock()
			k.asked++
			k.mu.Unlock()
		}
		k.mu.Lock()
		delete(k.leases, realm)
		k.mu.Unlock()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		_ = l.Release(last)
		cancel()
		if ctx.Err() != nil {
			return
		}
	}
}

// alone complains of others who hold a realm that somebody has just got. The other is asked
// first: what we still hold after that, we held at that moment.
func (d *desks) alone(k *desk, realm string, l *fleet.Lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, other := range d.all {
		other.mu.Lock()
		theirs := other.leases[realm]
		other.mu.Unlock()
		if other != k && theirs != nil && theirs.Held() && l.Held() {
			d.t.Errorf("two hold %s", realm)
		}
	}
}

// holds says how many realms each holds.
func (d *desks) holds() (n []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.all {
		n = append(n, k.held())
	}
	return n
}

func (k *desk) held() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.leases {
		if l.Held() {
			n++
		}
	}
	return n
}

// counted is how many leases were had, were released since somebody asked, and were lost.
func (d *desks) counted() (got, asked, lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.all {
		k.mu.Lock()
		got, asked, lost = got+k.got, asked+k.asked, lost+k.lost
		k.mu.Unlock()
	}
	return got, asked, lost
}

// leave is a stop as it is meant to be.
func (k *desk) leave() {
	k.all.t.Helper()
	k.Leave()
	k.stop()
	k.work.Wait()
	if err := k.Close(k.all.t.Context()); err != nil {
		k.all.t.Error(err)
	}
}

func realms(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("realm-%d", i))
	}
	return names
}
