package integration_test

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/fleet"
	"zulip-nats/integration_test/harness"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// idleRealms in the environment makes this binary a process of many realms, see
// idleProcess. Its value is the URL of NATS.
const idleRealms = "ZULIP_NATS_TEST_IDLE_REALMS"

// idleProcess runs a bridge for each line "realm email key site" that it reads, all on one
// connection, and answers the line "measure" with the bytes of its heap and of its stacks.
func idleProcess(natsURL string) error {
	conn, err := stream.Connect(context.Background(), stream.ConnectConfig{URL: natsURL})
	if err != nil {
		return err
	}
	shared, err := fleet.NewInstance(fleet.Config{Conn: conn, Writer: "idle"})
	if err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		f := strings.Fields(in.Text())
		if len(f) == 1 {
			// The least of several looks: renewals of leases are under way now and then.
			heap, stacks := uint64(math.MaxUint64), uint64(math.MaxUint64)
			for range 10 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				heap, stacks = min(heap, m.HeapAlloc), min(stacks, m.StackInuse)
				time.Sleep(50 * time.Millisecond)
			}
			fmt.Println(heap, stacks)
			continue
		}
		realm, err := subjects.ParseRealm(f[0])
		if err != nil {
			return err
		}
		account := poller.Account{Email: f[1], Key: f[2], Site: f[3], Insecure: true}
		b := bridge.New(bridge.Config{
			Realm: realm, Site: account.Site, Account: account.Email, Writer: "idle", Log: zerolog.Nop(),
			Poller: &poller.Poller{
				Client:  &poller.Client{Account: func() (poller.Account, error) { return account, nil }},
				Options: poller.DefaultOptions(), Log: zerolog.Nop(),
			},
			Open: func(ctx context.Context) (bridge.Stream, error) {
				s, err := stream.Open(ctx, conn, stream.Config{Realm: realm.String(), Filter: realm.All()})
				if err != nil {
					return nil, err
				}
				return s, nil
			},
			Acquire: func(ctx context.Context, _ func(string)) (bridge.Lease, error) {
				return shared.Acquire(ctx, realm.String(), 1, nil)
			},
		})
		go func() {
			if err := b.Run(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, realm, err)
			}
		}()
	}
	return nil
}

// TestIdleRealms measures what a realm costs a process that has many, all of which wait
// in a poll, by HTTPS as in life.
func TestIdleRealms(t *testing.T) {
	const few, many = 5, 50
	// It is 40 KiB, give or take one. The race detector keeps what a sync.Pool would give
	// back, and more.
	limit := harness.Fewer(48, 56) << 10
	zulip := &zulipsim.Server{}
	zulip.Start(t)
	https := httptest.NewTLSServer(zulip)
	t.Cleanup(https.Close)

	cmd := exec.Command(os.Args[0])
	// What is held in reserve grows with the processors that a machine has.
	cmd.Env = append(os.Environ(), idleRealms+"="+natstest.Start(t).URL, "GOMAXPROCS=2")
	cmd.Stderr = harness.NewJournal(t, "many realms")
	in, err := cmd.StdinPipe()
	harness.Must(t, err)
	stdout, err := cmd.StdoutPipe()
	harness.Must(t, err)
	harness.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	out := bufio.NewScanner(stdout)

	realms := 0
	measure := func(n int) (heap, stacks int) {
		for ; realms < n; realms++ {
			bot := zulip.Account(fmt.Sprintf("bot-%d@example.com", realms))
			_, err := fmt.Fprintf(in, "realm-%d %s %s %s\n", realms, bot.Email, bot.Key, https.URL)
			harness.Must(t, err)
		}
		harness.Eventually(t, "a poll of each realm that waits", func() bool {
			waiting := 0
			for _, q := range zulip.Queues() {
				if q.Waiting && q.Pending == 0 {
					waiting++
				}
			}
			return waiting == n
		})
		for i := range 5 { // the least is what is held: what is under way comes and goes
			_, err := fmt.Fprintln(in, "measure")
			harness.Must(t, err)
			if !out.Scan() {
				t.Fatal("the process has ended")
			}
			var h, s int
			_, err = fmt.Sscan(out.Text(), &h, &s)
			harness.Must(t, err)
			if i == 0 || h < heap {
				heap, stacks = h, s
			}
		}
		return heap, stacks
	}
	heap, stacks := measure(few) // what is there once for all is there by now
	moreHeap, moreStacks := measure(few + many)
	each := (moreHeap - heap) / many
	t.Logf("an idle realm holds %.1f KiB, and %.1f KiB of stacks", float64(each)/1024,
		float64(moreStacks-stacks)/many/1024)
	if each > limit {
		t.Errorf("an idle realm holds %d bytes, more than %d", each, limit)
	}
}
