package cli

import (
	"flag"
	"io"
	"reflect"
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
		"--event-types", "message, reaction", "--event-types", "typing", "--narrow", `[["channel","announce"],["topic","ÿ.>"]]`,
		"--all-public-streams", "--apply-markdown=true", "--client-gravatar=false", "--slim-presence", "--queue-life", "7d",
		"--nats-url", "nats://a:4222", "--nats-url=b,tls://c:4443", "--nats-creds", "/c.creds", "--nats-user", "u", "--nats-password", "p",
		"--nats-ca", "ca.pem", "--nats-cert", "cert.pem", "--nats-key", "key.pem", "--nats-port", "14222", "--state-dir", "/var/lib/z",
		"--stream", "OPS", "--publish-path", "atomic", "--no-lease", "--lease-ttl", "15s", "--start-from", "2026-01-31",
		"--backfill-max-age", "36h", "--backfill-max-messages", "5000", "--log-level", "debug", "--log-format", "json",
	)
	if err != nil {
		t.Fatal(err)
	}
	insecure := true
	want := Config{
		Realms: []RealmConfig{{
			Account: poller.Source{File: "/etc/zuliprc", Overrides: poller.Overrides{Insecure: &insecure}},
			Name:    "acme", DeleteQueue: true, Stream: "OPS", Path: stream.PathAtomic,
			Queue: poller.Options{
				EventTypes: []string{"message", "reaction", "typing"}, Narrow: [][2]string{{"channel", "announce"}, {"topic", "ÿ.>"}},
				AllPublicStreams: true, ApplyMarkdown: true, SlimPresence: true, Life: 168 * time.Hour,
			},
			BackfillMaxAge: 36 * time.Hour, BackfillMaxMessages: 5000,
			StartFrom: bridge.StartFrom{Time: time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)},
		}},
		NATS: stream.ConnectConfig{
			URL: "nats://a:4222,b,tls://c:4443", Creds: "/c.creds", User: "u", Password: "p", CA: "ca.pem", Cert: "cert.pem", Key: "key.pem",
		},
		NATSPort: 14222, StateDir: "/var/lib/z", NoLease: true, LeaseTTL: 15 * time.Second, LogLevel: zerolog.DebugLevel, LogFormat: LogJSON,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

// What is nearest to the command counts: the flag, the variable of this program, the variable of the nats command.
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

func TestVariableNames(t *testing.T) {
	c := defaults()
	others := map[string][]string{
		"nats-url": {"NATS_URL"}, "nats-creds": {"NATS_CREDS"}, "nats-nkey": {"NATS_NKEY"}, "nats-user": {"NATS_USER"},
		"nats-password": {"NATS_PASSWORD"}, "nats-ca": {"NATS_CA"}, "nats-cert": {"NATS_CERT"}, "nats-key": {"NATS_KEY"},
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
	for _, v := range []string{"ZULIP_NATS_ZULIPRC", "ZULIP_NATS_BACKFILL_MAX_AGE", "ZULIP_NATS_NATS_CA", "ZULIP_NATS_DELETE_QUEUE"} {
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
	for _, word := range []string{"0", "-1", "31.1.2026", "99999999999999999999"} {
		if err := startFrom(new(bridge.StartFrom))(word); err == nil {
			t.Errorf("%s is taken", word)
		}
	}
}

func TestMaxMessages(t *testing.T) {
	begin(t)
	// 0 reads back nothing; not given, there is no bound.
	for args, want := range map[string]int{"0": -1, "1": 1, "100000": 100000} {
		if c, err := configured(t, "--backfill-max-messages", args); err != nil || c.Realms[0].BackfillMaxMessages != want {
			t.Errorf("%s: %d, %v", args, c.Realms[0].BackfillMaxMessages, err)
		}
	}
}
