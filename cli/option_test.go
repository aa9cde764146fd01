package cli

import (
	"flag"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

// configured parses a command line of `run`.
func configured(t *testing.T, args ...string) (Config, error) {
	t.Helper()
	c := defaults()
	options := c.options()
	set := flag.NewFlagSet("run", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, o := range options {
		if err := o.Apply(set); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return c, parse(options)
}

func TestDefaults(t *testing.T) {
	begin(t)
	c, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Realms:   []RealmConfig{{Queue: poller.DefaultOptions(), Path: stream.PathAuto}},
		NATSPort: 4222, LeaseTTL: 4 * time.Second, LogLevel: zerolog.InfoLevel, LogFormat: LogAuto,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if !c.Realms[0].Queue.ClientGravatar {
		t.Error("client_gravatar is off, which is not Zulip's default")
	}
}

func TestEveryOption(t *testing.T) {
	begin(t)
	c, err := configured(t,
		"--zuliprc", "/etc/zuliprc", "--realm", "acme", "--insecure", "--delete-queue",
		"--event-types", "message, reaction", "--event-types", "typing", "--narrow",
		`[["channel","announce"],["topic","ÿ.>"]]`,
		"--all-public-streams", "--apply-markdown=true", "--client-gravatar=false", "--slim-presence",
		"--queue-life", "7d",
		"--nats-url", "nats://a:4222", "--nats-url=b,tls://c:4443", "--nats-creds", "/c.creds", "--nats-user", "u",
		"--nats-password", "p",
		"--nats-jwt", "jwt", "--nats-seed", "seed", "--nats-token", "t", "--nats-tls-first", "--nats-inbox-prefix",
		"_INBOX_zulip",
		"--nats-js-domain", "hub", "--nats-js-api-prefix", "JS.hub.API", "--nats-context", "ops",
		"--nats-nkey", "/u.nk",
		"--nats-ca", "ca.pem", "--nats-cert", "cert.pem", "--nats-key", "key.pem", "--nats-port", "14222",
		"--state-dir", "/var/lib/z",
		"--stream", "OPS", "--max-age", "30d", "--max-bytes", "10G", "--replicas", "3", "--publish-path", "atomic",
		"--no-lease", "--lease-ttl", "15s", "--start-from", "2026-01-31",
		"--state", "groups,emoji", "--oversize-wait", "2m", "--moved-from", "https://old.example.org", "--backfill-max-age", "36h",
		"--backfill-max-messages", "5000", "--http", "127.0.0.1:8080", "--pprof", "--log-level", "debug", "--log-format", "json",
	)
	if err != nil {
		t.Fatal(err)
	}
	insecure := true
	state, err := poller.SectionsOf([]string{"groups", "emoji"})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Realms: []RealmConfig{{
			Account: poller.Source{File: "/etc/zuliprc", Insecure: &insecure},
			Name:    "acme", DeleteQueue: true, Stream: "OPS", Path: stream.PathAtomic,
			New: stream.NewStream{MaxAge: 720 * time.Hour, MaxBytes: 10 << 30, Replicas: 3},
			Queue: poller.Options{
				EventTypes:       []string{"message", "reaction", "typing"},
				Narrow:           [][2]string{{"channel", "announce"}, {"topic", "ÿ.>"}},
				AllPublicStreams: true, ApplyMarkdown: true, SlimPresence: true, Life: 168 * time.Hour,
			},
			BackfillMaxAge: 36 * time.Hour, BackfillMaxMessages: 5000,
			State:        state,
			OversizeWait: 2 * time.Minute, MovedFrom: "https://old.example.org",
			StartFrom: bridge.StartFrom{Time: time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)},
		}},
		NATS: stream.ConnectConfig{
			URL: "nats://a:4222,b,tls://c:4443", Creds: "/c.creds", NKey: "/u.nk", JWT: "jwt", Seed: "seed", User: "u",
			Password: "p", Token: "t",
			CA: "ca.pem", Cert: "cert.pem", Key: "key.pem", TLSFirst: true, InboxPrefix: "_INBOX_zulip",
		},
		Context: "ops", JSDomain: "hub", JSAPIPrefix: "JS.hub.API",
		NATSPort: 4222, StateDir: "/var/lib/z", NoLease: true, LeaseTTL: 15 * time.Second,
		HTTP: "127.0.0.1:8080", Pprof: true, LogLevel: zerolog.DebugLevel,
		LogFormat: LogJSON,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

// What is nearest to the command counts: the flag, the variable of this program, the
// variable of the nats command.
func TestPrecedence(t *testing.T) {
	begin(t)
	url := func(args ...string) string {
		c, err := configured(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		return c.NATS.URL
	}
	for _, step := range []struct{ variable, value, want string }{
		{"NATS_URL", "nats://theirs", "nats://theirs"},
		{"ZULIP_NATS_NATS_URL", "nats://ours", "nats://ours"},
		{"ZULIP_NATS_NATS_URL", "", "nats://theirs"}, // empty is not set
	} {
		t.Setenv(step.variable, step.value)
		if got := url(); got != step.want {
			t.Errorf("with %s=%s the URL is %s, not %s", step.variable, step.value, got, step.want)
		}
		if got := url("--nats-url", "nats://flag"); got != "nats://flag" {
			t.Errorf("with %s=%s and a flag the URL is %s", step.variable, step.value, got)
		}
	}
	// Bool options too, and a flag can take back what a variable says.
	t.Setenv("ZULIP_NATS_NO_LEASE", "true")
	if c, err := configured(t); err != nil || !c.NoLease {
		t.Errorf("ZULIP_NATS_NO_LEASE=true: %v, %v", c.NoLease, err)
	}
	if c, err := configured(t, "--no-lease=false"); err != nil || c.NoLease {
		t.Errorf("--no-lease=false: %v, %v", c.NoLease, err)
	}
}

// services sets the variables that Kubernetes sets for a Service of that name in each
// container.
func services(t *testing.T, names ...string) {
	for _, name := range names {
		prefix := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		for variable, value := range map[string]string{
			"_SERVICE_HOST": "10.96.0.7", "_SERVICE_PORT": "4222", "_SERVICE_PORT_CLIENT": "4222",
			"_PORT":          "tcp://10.96.0.7:4222",
			"_PORT_4222_TCP": "tcp://10.96.0.7:4222", "_PORT_4222_TCP_PROTO": "tcp", "_PORT_4222_TCP_PORT": "4222",
			"_PORT_4222_TCP_ADDR": "10.96.0.7",
		} {
			t.Setenv(prefix+variable, value)
		}
	}
}

// A Service may have any name, and then its variables may have the names of ours.
func TestVariablesOfServices(t *testing.T) {
	begin(t)
	want, err := configured(t)
	if err != nil {
		t.Fatal(err)
	}
	services(t, "nats", "zulip", "zulip-nats", "zulip-nats-nats", "nats-url")
	for _, o := range new(Config{Realms: make([]RealmConfig, 1)}).options() {
		services(t, strings.ToLower("zulip-nats-"+o.Name))
	}
	if c, err := configured(t); err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v, %v\nwant %+v", c, err, want)
	}
	if unknown := unknownVariables(new(app).urfave().Commands); len(unknown) > 0 {
		t.Errorf("no option has %q", unknown)
	}
	// A port of our own counts, and a wrong one is refused, but where it plays no part.
	t.Setenv("ZULIP_NATS_NATS_PORT", "14222")
	if c, err := configured(t); err != nil || c.NATSPort != 14222 {
		t.Errorf("port %d, %v", c.NATSPort, err)
	}
	t.Setenv("ZULIP_NATS_NATS_PORT", "nats:4222")
	if _, err := configured(t); err == nil || !strings.Contains(err.Error(), "ZULIP_NATS_NATS_PORT") {
		t.Errorf("a wrong port: %v", err)
	}
	if _, err := configured(t, "--nats-url", "nats://nats:4222"); err != nil {
		t.Errorf("a port that plays no part: %v", err)
	}
}

func TestVariableNames(t *testing.T) {
	c := defaults()
	others := map[string][]string{
		"nats-url": {"NATS_URL"}, "nats-creds": {"NATS_CREDS"}, "nats-nkey": {"NATS_NKEY"}, "nats-user": {"NATS_USER"},
		"nats-password": {"NATS_PASSWORD"}, "nats-ca": {"NATS_CA"}, "nats-cert": {"NATS_CERT"},
		"nats-key":   {"NATS_KEY"},
		"nats-token": {"NATS_TOKEN"}, "nats-jwt": {"NATS_JWT"}, "nats-seed": {"NATS_SEED"},
		"nats-context": {"NATS_CONTEXT"}, "nats-js-domain": {"NATS_JS_DOMAIN"},
	}
	seen := map[string]string{}
	for _, o := range c.options() {
		for _, v := range o.EnvVars {
			if seen[v] != "" {
				t.Errorf("%s stands for --%s and for --%s", v, seen[v], o.Name)
			}
			seen[v] = o.Name
		}
		if got := o.EnvVars[1:]; len(got)+len(others[o.Name]) > 0 && !reflect.DeepEqual(got, others[o.Name]) {
			t.Errorf("--%s is also %q, not %q", o.Name, got, others[o.Name])
		}
	}
	for _, v := range []string{"ZULIP_NATS_ZULIPRC", "ZULIP_NATS_BACKFILL_MAX_AGE", "ZULIP_NATS_NATS_CA",
		"ZULIP_NATS_DELETE_QUEUE"} {
		if seen[v] == "" {
			t.Errorf("%s stands for nothing", v)
		}
	}
}

func TestStartFrom(t *testing.T) {
	for word, want := range map[string]bridge.StartFrom{
		"now":                       {},
		"1234":                      {MessageID: 1234},
		"2026-01-31T15:04:05Z":      {Time: time.Date(2026, 1, 31, 15, 4, 5, 0, time.UTC)},
		"2026-01-31T15:04:05+02:00": {Time: time.Date(2026, 1, 31, 13, 4, 5, 0, time.UTC)},
	} {
		var got bridge.StartFrom
		if err := startFrom(&got)(word); err != nil || got.MessageID != want.MessageID || !got.Time.Equal(want.Time) {
			t.Errorf("%s: %+v, %v", word, got, err)
		}
	}
	for _, word := range []string{"0", "-1", "31.1.2026", "99999999999999999999", "2999-01-31"} {
		if err := startFrom(new(bridge.StartFrom))(word); err == nil {
			t.Errorf("%s is taken", word)
		}
	}
}

func TestMaxMessages(t *testing.T) {
	begin(t)
	// 0 reads back nothing; not given, there is no bound.
	for args, want := range map[string]int{"0": -1, "1": 1, "100000": 100000} {
		if c, err := configured(t, "--backfill-max-messages", args); err != nil ||
			c.Realms[0].BackfillMaxMessages != want {
			t.Errorf("%s: %d, %v", args, c.Realms[0].BackfillMaxMessages, err)
		}
	}
}

func TestEventTypes(t *testing.T) {
	for word, want := range map[string]string{
		"message":                           "message",
		" message , reaction,,typing ":      "message reaction typing",
		`["message"]`:                       "message",
		`[ "message" , "reaction" ]`:        "message reaction",
		`["message","typing"],reaction`:     "message typing reaction",
		`reaction,["message"], ["typing"] `: "reaction message typing",
		"a_type_of_2031":                    "a_type_of_2031",
	} {
		var got []string
		if err := eventTypes(&got)(word); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %q, %v", word, got, err)
		}
	}
	for word, says := range map[string]string{
		`['message']`:        `"['message']" is no JSON list`,
		`["message"`:         "is no JSON list",
		`["message"] typing`: `"typing" stands behind a JSON list`,
		`["message", 7]`:     "is no JSON list",
		`"message"`:          `"\"message\"" can be no type of events, which are words like update_message (is message meant?)`,
		"message;reaction":   `"message;reaction" can be no type`,
		"Update-Message":     "(is update_message meant?)",
		"message\nreaction":  "can be no type",
		"zulip.acme.message": "can be no type",
		"[]":                 `"[]" names no type`,
		" , ":                "names no type",
	} {
		var got []string
		if err := eventTypes(&got)(word); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %q, %v", word, got, err)
		}
	}
}

// What is left out is named like what is wanted. Heartbeats carry the position, and nothing
// must be left to ask for.
func TestExcludeTypes(t *testing.T) {
	c := defaults()
	if err := excludeTypes(&c.Realms[0].Queue.ExcludeTypes)(`typing,["presence"]`); err != nil ||
		strings.Join(c.Realms[0].Queue.ExcludeTypes, " ") != "typing presence" {
		t.Errorf("%q, %v", c.Realms[0].Queue.ExcludeTypes, err)
	}
	for word, says := range map[string]string{"typing,heartbeat": "heartbeats cannot be left out", "Typing": "is typing meant?"} {
		var got []string
		if err := excludeTypes(&got)(word); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", word, err)
		}
	}
	c.Realms[0].Queue.EventTypes = []string{"presence", "message"}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	c.Realms[0].Queue.EventTypes = []string{"presence", "typing"}
	if err := c.check(); err == nil || !strings.Contains(err.Error(), "leaves out all that --event-types asks for") {
		t.Errorf("nothing is asked for: %v", err)
	}

	// Where no messages are stored, nobody knows which reactions are on direct ones.
	for _, test := range []struct {
		types, excluded []string
		says            string // empty: it is taken
	}{
		{nil, []string{"message"}, "events of type reaction, submessage, update_message_flags are about"},
		{[]string{"reaction", "typing"}, nil, "events of type reaction are about"},
		{[]string{"reaction", "typing"}, []string{"reaction"}, ""},
		{[]string{"typing"}, nil, ""},
		{nil, []string{"message", "reaction", "submessage", "update_message_flags"}, ""},
		{nil, []string{"typing"}, ""},
	} {
		c := defaults()
		q := &c.Realms[0].Queue
		q.EventTypes, q.ExcludeTypes = test.types, test.excluded
		if err := c.check(); err != nil {
			t.Errorf("%v without %v: %v", test.types, test.excluded, err)
		}
		q.NoDirectMessages = true
		if err := c.check(); (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%v without %v and direct messages: %v", test.types, test.excluded, err)
		}
	}
}

func TestSize(t *testing.T) {
	for word, want := range map[string]int64{
		"1048576": 1 << 20, "1048577B": 1<<20 + 1, "1M": 1 << 20, "10g": 10 << 30, "2GB": 2 << 30, "500MiB": 500 << 20,
		"3T": 3 << 40, "2048K": 2 << 20,
	} {
		var got int64
		if err := size(&got, 1<<20)(word); err != nil || got != want {
			t.Errorf("%s: %d, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "G", "10 G", "1.5G", "-1G", "0", "1K", "1GG", "1I", "1BI", "9999999999G",
		"9223372036854775808", "ten"} {
		if err := size(new(int64), 1<<20)(word); err == nil {
			t.Errorf("%q is taken", word)
		}
	}
}

func TestPeriod(t *testing.T) {
	for d, want := range map[time.Duration]string{168 * time.Hour: "7 days", 24 * time.Hour: "24 h",
		36 * time.Hour: "36 h", time.Hour: "1 h", 90 * time.Minute: "90 min", 90 * time.Second: "90 s",
		2 * time.Second: "2 s", time.Second: "1 s", 1500 * time.Millisecond: "1.5s"} {
		if got := period(d); got != want {
			t.Errorf("%v: %s, not %s", d, got, want)
		}
	}
}

func TestMovedFrom(t *testing.T) {
	for _, word := range []string{"https://old.example.org", "http://127.0.0.1:9991/"} {
		var got string
		if err := site(&got)(word); err != nil || got != word {
			t.Errorf("%s: %s, %v", word, got, err)
		}
	}
	for _, word := range []string{"old", "old.example.org", "nats://old.example.org", "https://",
		"https://bot:hunter2@/x@y"} {
		if err := site(new(string))(word); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", word, err)
		}
	}
}

func TestMaxAge(t *testing.T) {
	for word, want := range map[string]time.Duration{"0": -1, "1m": time.Minute, "36h": 36 * time.Hour,
		"365d": 365 * 24 * time.Hour} {
		var got time.Duration
		if err := maxAge(&got)(word); err != nil || got != want {
			t.Errorf("%s: %v, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "-1h", "30s", "0s", "forever"} {
		if err := maxAge(new(time.Duration))(word); err == nil {
			t.Errorf("%q is taken", word)
		}
	}
}
