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
var passwords = map[string]string{"operator": "theOperatorsOwn", "bridge": "theBridgesOwn", "triage": "theTriagesOwn",
	"ops": "theOpsOwn"}

// documented gives the nats-server configurations of docs/permissions.md, in their order,
// with our passwords in them: of one account, the user who reads one channel, a reader in
// an account of its own, and of JetStream in another account.
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
	if len(all) != 4 {
		t.Fatalf("%d configurations in docs/permissions.md, not 4", len(all))
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
		pattern := strings.NewReplacer(`\*`, `[^.]+`, `>`, `.+`).Replace(regexp.QuoteMeta(right[1]))
		is := regexp.MustCompile("^" + pattern + "$").MatchString
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

// TestReadersPermissionsOfOneChannel is the reader of one channel of docs/permissions.md:
// it makes its consumers, gets all that is of that channel and what tells of gaps, and
// nothing else by any way.
func TestReadersPermissionsOfOneChannel(t *testing.T) {
	t.Parallel()
	docs := documented(t)
	const before = "{ user: triage"
	conf := strings.Replace(docs[0], before, docs[1]+before, 1)
	// The channels' ids are the simulator's.
	ids := &zulipsim.Server{}
	ours, theirs := ids.Channel("general").ID, ids.Channel("secret").ID
	conf = strings.ReplaceAll(conf, ".channel.7", fmt.Sprintf(".channel.%d", ours))
	n := natstest.StartProcess(t, conf)
	w := newWorld(t, as("operator", n.URL), func(z *zulipsim.Server) { z.MaxMessageLength = 4 << 20 })
	if w.zulip.Channel("general").ID != ours || w.zulip.Channel("secret").ID != theirs || ours == theirs {
		t.Fatal("the channels have other ids")
	}
	w.nats = n.URL
	w.run("--nats-user", "bridge", "--nats-password", passwords["bridge"], "--subjects", "by-place")
	w.registered()
	ada := "ada@example.com"
	for _, m := range []zulipsim.Message{{Channel: "general", Topic: "t"}, {Channel: "secret", Topic: "t"},
		{To: []string{botEmail}}} {
		m.Content, m.Sender = "a word", ada
		w.zulip.React(w.zulip.SendMessage(m), ada, "tada")
	}
	large := strings.Repeat("large ", 1<<18)
	w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: large})
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": "away"})
	w.settle()
	on := map[string]int{}
	var object string
	for _, m := range w.read() {
		on[m.Subject]++
		object = cmp.Or(m.Get(events.HeaderObject), object)
	}
	channel := func(typ string, id int64) string { return fmt.Sprintf("zulip.acme.%s.channel.%d", typ, id) }
	for subject, want := range map[string]int{channel("message", ours): 2, channel("reaction", ours): 1,
		channel("message", theirs): 1, channel("reaction", theirs): 1, "zulip.acme.message.direct": 1,
		"zulip.acme.reaction.direct": 1, "zulip.acme.user_status.none": 1} {
		if on[subject] != want {
			t.Errorf("%d on %s, want %d", on[subject], subject, want)
		}
	}

	// The filters that the README names.
	for _, test := range []struct {
		filters []string
		want    uint64
	}{
		{[]string{"zulip.acme.message.>"}, 4},
		{[]string{"zulip.acme.message", "zulip.acme.message.>"}, 4},
		{[]string{channel("*", ours)}, 3},
		{[]string{"zulip.acme.message.channel.*"}, 3},
		{[]string{"zulip.acme.*.channel.*", "zulip.acme.*.direct", "zulip.acme.*.none"}, 8},
		{[]string{"zulip.acme.bridge.>"}, 1},
	} {
		c, err := w.js.CreateConsumer(t.Context(), w.stream, jetstream.ConsumerConfig{FilterSubjects: test.filters})
		harness.Must(t, err)
		if has := c.CachedInfo().NumPending; has != test.want {
			t.Errorf("%q: %d messages, want %d", test.filters, has, test.want)
		}
	}

	refused := make(chan string, 100)
	nc := natstest.Connect(t, n.URL, nats.UserInfo("ops", passwords["ops"]), nats.CustomInboxPrefix("_INBOX_ops"),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				refused <- err.Error()
			}
		}))
	filter := channel("*", ours)
	settings := jetstream.ConsumerConfig{Durable: "ops", FilterSubject: filter, MaxAckPending: 1}
	consumer, err := natstest.JetStream(t, nc).CreateOrUpdateConsumer(t.Context(), w.stream, settings)
	harness.Must(t, err)
	for _, want := range []string{"message", "reaction", "message"} {
		m, err := consumer.Next(jetstream.FetchMaxWait(harness.Patience))
		harness.Must(t, err)
		if m.Subject() != channel(want, ours) {
			t.Errorf("the reader gets %s, want %s", m.Subject(), channel(want, ours))
		}
		harness.Must(t, m.DoubleAck(t.Context()))
	}
	info, err := consumer.Info(t.Context())
	if err != nil || info.NumPending != 0 || info.NumAckPending != 0 {
		t.Errorf("behind the channel's messages: %+v, %v", info, err)
	}
	w.zulip.ExpireAll()
	gaps, err := natstest.JetStream(t, nc).CreateOrUpdateConsumer(t.Context(), w.stream,
		jetstream.ConsumerConfig{Durable: "ops-gaps", FilterSubject: "zulip.acme.bridge.gap", MaxAckPending: 1})
	harness.Must(t, err)
	for _, want := range []string{events.RecordGapOpened, events.RecordGapClosed} {
		m, err := gaps.Next(jetstream.FetchMaxWait(harness.Patience))
		harness.Must(t, err)
		if has := m.Headers().Get(events.HeaderRecord); has != want {
			t.Errorf("the reader gets the record %q, want %s", has, want)
		}
		harness.Must(t, m.DoubleAck(t.Context()))
	}
	if info, err := gaps.Info(t.Context()); err != nil || info.NumPending != 0 || info.NumAckPending != 0 {
		t.Errorf("behind the gap: %+v, %v", info, err)
	}

	// What the server says to consumers of more.
	create := "$JS.API.CONSUMER.CREATE.ZULIP_acme.ops." + filter
	for name, body := range map[string]string{
		"another filter":     `{"stream_name":"ZULIP_acme","config":{"durable_name":"ops","filter_subject":"zulip.acme.>"}}`,
		"no filter":          `{"stream_name":"ZULIP_acme","config":{"durable_name":"ops"}}`,
		"several filters":    `{"stream_name":"ZULIP_acme","config":{"durable_name":"ops","filter_subjects":["zulip.acme.*.direct","` + filter + `"]}}`,
		"one besides":        `{"stream_name":"ZULIP_acme","config":{"durable_name":"ops","filter_subject":"` + filter + `","filter_subjects":["zulip.acme.>"]}}`,
		"another stream":     `{"stream_name":"OBJ_zulip_acme","config":{"durable_name":"ops","filter_subject":"` + filter + `"}}`,
		"another's consumer": `{"stream_name":"ZULIP_acme","config":{"durable_name":"triage","filter_subject":"` + filter + `"}}`,
	} {
		m, err := nc.Request(create, []byte(body), harness.Patience)
		harness.Must(t, err)
		if !bytes.Contains(m.Data, []byte(`"error"`)) {
			t.Errorf("%s: %s", name, m.Data)
		}
		t.Logf("%s: %s", name, m.Data)
	}
	none := func(what string, try func() error) {
		t.Helper()
		harness.Must(t, try())
		harness.Must(t, nc.Flush())
		select {
		case <-refused:
		case <-time.After(harness.Patience):
			t.Errorf("%s is not refused", what)
		}
	}
	for _, subject := range []string{"$JS.API.CONSUMER.CREATE.ZULIP_acme", "$JS.API.CONSUMER.CREATE.ZULIP_acme.ops",
		"$JS.API.CONSUMER.DURABLE.CREATE.ZULIP_acme.ops", "$JS.API.CONSUMER.CREATE.ZULIP_acme.ops.zulip.acme.>",
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.ops." + channel("*", theirs),
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.ops.zulip.acme.*.channel.*",
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.ops." + fmt.Sprintf("zulip.*.*.channel.%d", ours),
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.ops.zulip.acme.*.direct",
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.ops-gaps", "$JS.API.CONSUMER.CREATE.ZULIP_acme.ops-gaps.zulip.acme.bridge.*",
		"$JS.API.CONSUMER.CREATE.ZULIP_acme.other." + filter, "$JS.API.CONSUMER.MSG.NEXT.ZULIP_acme.triage",
		"$JS.API.STREAM.MSG.GET.ZULIP_acme", "$JS.API.DIRECT.GET.ZULIP_acme",
		"$JS.API.DIRECT.GET.ZULIP_acme.zulip.acme.message.direct", "$JS.API.STREAM.INFO.ZULIP_acme",
		"$JS.API.STREAM.MSG.GET.OBJ_zulip_acme", "$JS.API.DIRECT.GET.OBJ_zulip_acme.$O.zulip_acme.M.x",
		"$JS.API.CONSUMER.CREATE.OBJ_zulip_acme.ops.$O.zulip_acme.>", "$JS.API.STREAM.CREATE.mine",
		channel("message", ours), "$O.zulip_acme.C.x"} {
		none("a request on "+subject, func() error { return nc.PublishRequest(subject, nc.NewInbox(), []byte("{}")) })
	}
	for _, subject := range []string{channel("*", ours), "zulip.acme.>", "_INBOX.>", ">", "$O.zulip_acme.>"} {
		none("to listen on "+subject, func() error { _, err := nc.SubscribeSync(subject); return err })
	}
	if object == "" {
		t.Error("no message is in the object store")
	}

	// Who has that right for other names changes the filters of others.
	_, err = w.js.CreateConsumer(t.Context(), w.stream,
		jetstream.ConsumerConfig{Durable: "triage", FilterSubject: "zulip.acme.message.>"})
	harness.Must(t, err)
	changed, err := w.js.CreateOrUpdateConsumer(t.Context(), w.stream,
		jetstream.ConsumerConfig{Durable: "triage", FilterSubject: filter})
	if err != nil || changed.CachedInfo().Config.FilterSubject != filter {
		t.Errorf("the filter of another's consumer is as it was, %v; docs/permissions.md says otherwise", err)
	}

	// Whoever makes a consumer chooses where it sends what it has.
	elsewhere, err := natstest.Connect(t, as("operator", n.URL)).SubscribeSync("some.where")
	harness.Must(t, err)
	harness.Must(t, w.js.DeleteConsumer(t.Context(), w.stream, "ops"))
	m, err := nc.Request(create, []byte(`{"stream_name":"ZULIP_acme","config":{"durable_name":"ops","ack_policy":"none",`+
		`"filter_subject":"`+filter+`","deliver_subject":"some.where"}}`), harness.Patience)
	harness.Must(t, err)
	if _, err := elsewhere.NextMsg(harness.Patience); err != nil {
		t.Errorf("%v, after %s; docs/permissions.md says otherwise", err, m.Data)
	}
}

// streams are the names of all streams.
func (w *world) streams() (names []string) {
	w.t.Helper()
	list := w.js.StreamNames(w.t.Context())
	for name := range list.Name() {
		names = append(names, name)
	}
	harness.Must(w.t, list.Err())
	slices.Sort(names)
	return names
}

// TestReadersHarm: what a reader asks for may be answered on a subject on which he may
// not publish, and docs/permissions.md says so. In an account of his own, as it has it
// too, that is no way out of there.
func TestReadersHarm(t *testing.T) {
	t.Parallel()
	// A pull for which there is nothing is answered without a body, which is a request to
	// delete a stream.
	pull := func(nc *nats.Conn, api, consumer string) {
		t.Helper()
		harness.Must(t, nc.PublishRequest(api+".CONSUMER.MSG.NEXT.ZULIP_acme."+consumer, "$JS.API.STREAM.DELETE.ZULIP_acme",
			[]byte(`{"batch":10,"no_wait":true}`)))
		harness.Must(t, nc.Flush())
	}
	t.Run("in the same account", func(t *testing.T) {
		t.Parallel()
		n := natstest.StartProcess(t, documented(t)[0])
		w := newWorld(t, as("operator", n.URL))
		natstest.CreateStream(t, w.js, jetstream.StreamConfig{Name: w.stream, Subjects: []string{"zulip.acme.>"}})
		_, err := w.js.CreateConsumer(t.Context(), w.stream,
			jetstream.ConsumerConfig{Durable: "triage", AckPolicy: jetstream.AckExplicitPolicy})
		harness.Must(t, err)
		pull(natstest.Connect(t, n.URL, nats.UserInfo("triage", passwords["triage"]),
			nats.CustomInboxPrefix("_INBOX_triage")), "$JS.API", "triage")
		harness.Eventually(t, "a stream that is gone; if it is not, nats-server has mended this: docs/permissions.md says otherwise",
			func() bool { return len(w.streams()) == 0 })
	})
	t.Run("in an account of his own", func(t *testing.T) {
		t.Parallel()
		ours := new(zulipsim.Server).Channel("general").ID
		filter := fmt.Sprintf("zulip.acme.*.channel.%d", ours)
		n := natstest.StartProcess(t, documented(t)[2])
		w := newWorld(t, as("operator", n.URL))
		w.nats = as("bridge", n.URL)
		w.run("--subjects", "by-place")
		w.registered()
		for _, channel := range []string{"general", "secret"} {
			w.zulip.SendMessage(zulipsim.Message{Channel: channel, Topic: "t", Content: "a word"})
		}
		w.settle()
		_, err := w.js.CreateConsumer(t.Context(), w.stream,
			jetstream.ConsumerConfig{Durable: "ops", FilterSubject: filter, AckPolicy: jetstream.AckExplicitPolicy})
		harness.Must(t, err)

		nc := natstest.Connect(t, n.URL, nats.UserInfo("ops", passwords["ops"]))
		js, err := jetstream.NewWithAPIPrefix(nc, "JS.bus.API")
		harness.Must(t, err)
		consumer, err := js.Consumer(t.Context(), w.stream, "ops")
		harness.Must(t, err)
		m, err := consumer.Next(jetstream.FetchMaxWait(harness.Patience))
		harness.Must(t, err)
		if want := fmt.Sprintf("zulip.acme.message.channel.%d", ours); m.Subject() != want {
			t.Errorf("the reader gets %s, want %s", m.Subject(), want)
		}
		harness.Must(t, m.DoubleAck(t.Context()))
		info, err := consumer.Info(t.Context())
		if err != nil || info.NumPending != 0 || info.NumAckPending != 0 {
			t.Errorf("behind the message: %+v, %v", info, err)
		}
		here := w.streams()
		came, err := nc.SubscribeSync("$JS.API.STREAM.DELETE.ZULIP_acme")
		harness.Must(t, err)
		pull(nc, "JS.bus.API", "ops")
		if _, err := came.NextMsg(harness.Patience); err != nil {
			t.Errorf("the answer does not come back to where it was asked for: %v", err)
		}
		harness.Must(t, nc.PublishRequest("$JS.API.STREAM.DELETE.ZULIP_acme", nc.NewInbox(), nil))
		_, err = js.CreateOrUpdateConsumer(t.Context(), w.stream, jetstream.ConsumerConfig{Durable: "ops", FilterSubject: "zulip.acme.>"})
		if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, jetstream.ErrJetStreamNotEnabled) {
			t.Errorf("a consumer of more: %v", err)
		}
		if now := w.streams(); !slices.Equal(now, here) || len(here) == 0 {
			t.Errorf("the streams are %q, and were %q", now, here)
		}
	})
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
	n := natstest.StartProcess(t, documented(t)[3])
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
