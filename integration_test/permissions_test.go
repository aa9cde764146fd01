package integration_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// passwords are those of the users in docs/permissions.md.
var passwords = map[string]string{"operator": "theOperatorsOwn", "bridge": "theBridgesOwn", "triage": "theTriagesOwn"}

// documented gives the nats-server configurations of docs/permissions.md, in their order,
// with our passwords in them.
func documented(t testing.TB) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/permissions.md")
	harness.Must(t, err)
	var all []string
	for _, m := range regexp.MustCompile("(?s)```conf\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		conf := m[1]
		for user, password := range passwords {
			harness.KeepSecret(password)
			conf = strings.ReplaceAll(conf, "$"+strings.ToUpper(user)+"_PASSWORD", password)
		}
		all = append(all, conf)
	}
	if len(all) != 2 {
		t.Fatalf("%d configurations in docs/permissions.md, not 2", len(all))
	}
	return all
}

// as is a server's URL with a user of docs/permissions.md in it.
func as(user, natsURL string) string {
	return strings.Replace(natsURL, "://", "://"+user+":"+passwords[user]+"@", 1)
}

// tour lets the program do all that it asks NATS for: a first start, events by every
// path, one that is larger than a message, a second instance that waits for the lease and
// takes over, a lost queue and the refill.
func (w *world) tour(args ...string) {
	w.t.Helper()
	t, rng := w.t, harness.Rand(w.t)
	p := w.run(args...)
	w.registered()
	w.talk(rng, 20)
	w.zulip.Down()
	w.talk(rng, 100)
	w.zulip.Up()
	w.settle()

	waits := w.run(args...)
	waits.Expect("standing by: another instance leads", w.writer())
	p.Kill()
	w.registered()
	w.talk(rng, 20)
	w.settle()
	waits.Kill() // and while nobody follows, the queue goes
	w.talk(rng, 30)
	w.zulip.ExpireAll()
	w.talk(rng, 5)
	p = w.run(args...)
	w.registered()
	w.settle()
	found := w.check().clean(t)
	if found.records["gap-closed"] != 1 ||
		!slices.ContainsFunc(found.all, func(m harness.Stored) bool { return m.Get(events.HeaderOrigin) == "backfill" }) {
		t.Errorf("nothing was refilled: %v", found.records)
	}

	large := strings.Repeat("large ", 1<<18) // 1.5 MiB, max_payload is 1 MiB
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": large})
	w.settle()
	var object string
	for _, m := range w.read() {
		if name := m.Get(events.HeaderObject); name != "" {
			object = name
		}
	}
	store, err := w.js.ObjectStore(t.Context(), "zulip_acme")
	harness.Must(t, err)
	data, err := store.GetBytes(t.Context(), object)
	if err != nil || !bytes.Contains(data, []byte(large)) {
		t.Errorf("the object %q: %d bytes, %v", object, len(data), err)
	}
	for _, line := range append(p.Lines("permission"), p.Lines("status_unseen")...) {
		t.Errorf("a permission is missing: %s", line)
	}
	p.Kill()
}

// TestPermissions runs the program with the rights of docs/permissions.md: they are
// enough, and each to publish is used.
func TestPermissions(t *testing.T) {
	t.Parallel()
	n := natstest.StartProcess(t, documented(t)[0])
	w := newWorld(t, as("operator", n.URL), unlimited)
	proxy := natstest.NewProxy(t, n.URL)
	var mu sync.Mutex
	used := map[string]bool{}
	proxy.OnPublish(func(m natstest.Publish) natstest.Fate {
		mu.Lock()
		defer mu.Unlock()
		used[m.Subject] = true
		return natstest.Pass
	})
	w.nats = proxy.URL
	w.tour("--nats-user", "bridge", "--nats-password", passwords["bridge"])
	// It is found with these rights.
	w.run("--nats-user", "bridge", "--nats-password", passwords["bridge"])
	harness.Eventually(t, "a bridge that is found", func() bool {
		_, code := w.status("--realm", "acme", "--nats-user", "operator", "--nats-password", passwords["operator"])
		return code == 0
	})

	_, rights, _ := strings.Cut(documented(t)[0], "user: bridge")
	rights, _, _ = strings.Cut(rights, "subscribe:")
	allowed := regexp.MustCompile(`(?m)^\s+"([^"]+)"`).FindAllStringSubmatch(rights, -1)
	if len(allowed) < 10 {
		t.Fatalf("%d rights of the bridge in\n%s", len(allowed), rights)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, right := range allowed {
		stem, open := strings.CutSuffix(right[1], ">")
		is := func(subject string) bool { return subject == right[1] || open && strings.HasPrefix(subject, stem) }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(used)), is) {
			t.Errorf("nothing was published on %s: it need not be allowed", right[1])
		}
	}
}

// TestReadersPermissions is a reader with the rights of docs/permissions.md: it gets the
// messages, and nothing else by any way.
func TestReadersPermissions(t *testing.T) {
	t.Parallel()
	n := natstest.StartProcess(t, documented(t)[0])
	w := newWorld(t, as("operator", n.URL))
	w.nats = n.URL
	w.run("--nats-user", "bridge", "--nats-password", passwords["bridge"])
	w.registered()
	id := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "for triage"})
	w.zulip.React(id, "ada@example.com", "tada")
	w.settle()
	_, err := w.js.CreateConsumer(t.Context(), w.stream,
		jetstream.ConsumerConfig{Durable: "triage", FilterSubject: "zulip.acme.message",
			AckPolicy: jetstream.AckExplicitPolicy})
	harness.Must(t, err)

	refused := make(chan string, 100)
	nc := natstest.Connect(t, n.URL, nats.UserInfo("triage", passwords["triage"]),
		nats.CustomInboxPrefix("_INBOX_triage"),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				refused <- err.Error()
			}
		}))
	js := natstest.JetStream(t, nc)
	consumer, err := js.Consumer(t.Context(), w.stream, "triage")
	harness.Must(t, err)
	m, err := consumer.Next(jetstream.FetchMaxWait(harness.Patience))
	harness.Must(t, err)
	if m.Subject() != "zulip.acme.message" || !bytes.Contains(m.Data(), []byte("for triage")) {
		t.Errorf("the reader gets %s: %s", m.Subject(), m.Data())
	}
	harness.Must(t, m.DoubleAck(t.Context()))
	info, err := consumer.Info(t.Context())
	if err != nil || info.NumPending != 0 || info.NumAckPending != 0 {
		t.Errorf("behind the message: %+v, %v", info, err)
	}

	none := func(what string, try func() error) {
		t.Helper()
		harness.Must(t, try())
		harness.Must(t, nc.Flush())
		select {
		case why := <-refused:
			t.Log(why)
		case <-time.After(harness.Patience):
			t.Errorf("%s is not refused", what)
		}
	}
	for _, subject := range []string{"zulip.acme.message", "$JS.API.STREAM.MSG.GET.ZULIP_acme",
		"$JS.API.DIRECT.GET.ZULIP_acme.zulip.acme.reaction",
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.mine", "$JS.API.CONSUMER.DURABLE.CREATE.ZULIP_acme.mine",
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.triage.zulip.acme.>", "$JS.API.CONSUMER.MSG.NEXT.ZULIP_acme.other",
		"$JS.API.STREAM.PURGE.ZULIP_acme",
		"$JS.API.STREAM.INFO.ZULIP_acme", "$O.zulip_acme.C.x", "$KV.zulip_bridge.acme.lease"} {
		none("a request on "+subject, func() error { return nc.PublishRequest(subject, nc.NewInbox(), []byte("{}")) })
	}
	for _, subject := range []string{"zulip.acme.>", "_INBOX.>", ">", "$JS.EVENT.>"} {
		none("to listen on "+subject, func() error { _, err := nc.SubscribeSync(subject); return err })
	}
}

// TestMoreThanMeant: who may create consumers reads all, and the object store is read
// with the rights that docs/permissions.md names.
func TestMoreThanMeant(t *testing.T) {
	t.Parallel()
	rights := `{ user: maker, password: theMakersOwn, permissions: {
		publish: ["$JS.API.CONSUMER.CREATE.ZULIP_acme.>", "$JS.API.CONSUMER.MSG.NEXT.ZULIP_acme.>"], subscribe: ["_INBOX_maker.>"] } }
	{ user: large, password: theLargeOnesOwn, permissions: {
		publish: ["$JS.API.STREAM.INFO.OBJ_zulip_acme", "$JS.API.STREAM.MSG.GET.OBJ_zulip_acme", "$JS.API.DIRECT.GET.OBJ_zulip_acme.>",
			"$JS.API.CONSUMER.*.OBJ_zulip_acme.>", "$JS.FC.OBJ_zulip_acme.>"], subscribe: ["_INBOX_large.>"] } }
	`
	n := natstest.StartProcess(t, strings.Replace(documented(t)[0], "{ user: triage", rights+"{ user: triage", 1))
	w := newWorld(t, as("operator", n.URL))
	w.nats = n.URL
	w.run("--nats-user", "bridge", "--nats-password", passwords["bridge"])
	w.registered()
	w.zulip.React(w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "one"}),
		"ada@example.com", "tada")
	large := strings.Repeat("large ", 1<<18)
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": large})
	w.settle()

	user := func(name, password string) jetstream.JetStream {
		return natstest.JetStream(t, natstest.Connect(t, n.URL, nats.UserInfo(name, password),
			nats.CustomInboxPrefix("_INBOX_"+name)))
	}
	all, err := user("maker", "theMakersOwn").CreateConsumer(t.Context(), w.stream,
		jetstream.ConsumerConfig{FilterSubject: "zulip.acme.reaction"})
	harness.Must(t, err)
	m, err := all.Next(jetstream.FetchMaxWait(harness.Patience))
	if err != nil || m.Subject() != "zulip.acme.reaction" {
		t.Errorf("who may create a consumer does not read what he likes: %v; say so in docs/permissions.md", err)
	}
	store, err := user("large", "theLargeOnesOwn").ObjectStore(t.Context(), "zulip_acme")
	harness.Must(t, err)
	var object string
	for _, m := range w.read() {
		object = cmp.Or(m.Get(events.HeaderObject), object)
	}
	if data, err := store.GetBytes(t.Context(), object); err != nil || !bytes.Contains(data, []byte(large)) {
		t.Errorf("the object %q: %d bytes, %v", object, len(data), err)
	}
}

// TestImportedJetStream is the tour with JetStream in another account, as
// docs/permissions.md has it.
func TestImportedJetStream(t *testing.T) {
	t.Parallel()
	n := natstest.StartProcess(t, documented(t)[1])
	w := newWorld(t, as("operator", n.URL), unlimited)
	w.nats = n.URL
	w.tour("--nats-user", "bridge", "--nats-password", passwords["bridge"], "--nats-js-api-prefix", "JS.store.API")

	p := w.run("--nats-user", "bridge", "--nats-password", passwords["bridge"], "--nats-js-api-prefix",
		"JS.nowhere.API")
	p.Expect("nobody answers under", "JS.nowhere.API", "imports it")
}

// TestLeafNode is the tour by way of a leaf node that has a JetStream domain of its own.
func TestLeafNode(t *testing.T) {
	t.Parallel()
	port := natstest.FreePort(t)
	domain := func(name, leafnodes string) *natstest.Process {
		return natstest.StartProcess(t,
			fmt.Sprintf("jetstream { store_dir: %q, domain: %s }\nleafnodes { %s }", t.TempDir(), name, leafnodes))
	}
	hub := domain("hub", fmt.Sprintf(`listen: "127.0.0.1:%d"`, port))
	leaf := domain("leaf", fmt.Sprintf(`remotes: [ { url: "nats-leaf://127.0.0.1:%d" } ]`, port))
	w := newWorld(t, hub.URL, unlimited)
	w.nats = leaf.URL
	w.tour("--nats-js-domain", "hub")
	p := w.run("--nats-js-domain", "hop")
	p.Expect("nobody answers under", "$JS.hop.API", "leaf node")
}
