package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAsyncAPI(t *testing.T) {
	s := begin(t)
	rc := filepath.Join(s.TempDir(), "zuliprc")
	if err := os.WriteFile(rc, []byte("[api]\nemail=bot@example.com\nkey="+strings.Repeat("k", 32)+
		"\nsite=https://chat.example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, stream, host, address string }{
		{"--realm acme", "ZULIP_acme", "127.0.0.1:4222", "zulip.acme.message"},
		{"--zuliprc " + rc, "ZULIP_chat", "127.0.0.1:4222", "zulip.chat.message"},
		{"--realm acme --stream ALL --nats-port 4333", "ALL", "127.0.0.1:4333", "zulip.acme.message"},
		{"--realm acme --nats-url nats://u:geheim@n.example.com:4444", "ZULIP_acme", "n.example.com:4444", "zulip.acme.message"},
		{"--realm acme --nats-url n.example.com:4444", "ZULIP_acme", "n.example.com:4444", "zulip.acme.message"},
	} {
		e := s.runs(append([]string{"asyncapi"}, strings.Fields(c.args)...)...)
		var doc struct {
			Servers   map[string]struct{ Host string }
			Channels  map[string]struct{ Address string }
			JetStream struct{ Stream string } `json:"x-jetstream"`
		}
		if err := json.Unmarshal([]byte(e.stdout), &doc); err != nil || e.code != 0 || e.stderr != "" {
			t.Fatalf("%s: exit code %d, %v, stderr %q", c.args, e.code, err, e.stderr)
		}
		if doc.Servers["nats"].Host != c.host || doc.Channels["message"].Address != c.address || doc.JetStream.Stream != c.stream {
			t.Errorf("%s: %+v, %+v, %+v", c.args, doc.Servers, doc.Channels["message"], doc.JetStream)
		}
		if strings.Contains(e.stdout, "geheim") || strings.Contains(e.stdout, strings.Repeat("k", 32)) {
			t.Errorf("%s: a secret is in the document", c.args)
		}
	}
	e := s.runs("asyncapi", "--realm", "acme", "--subjects", "by-place")
	for _, address := range []string{"zulip.acme.message.channel.{channel}", "zulip.acme.message.direct", "zulip.acme.presence.none",
		"zulip.acme.{type}.direct", "zulip.acme.bridge.gap"} {
		if e.code != 0 || !strings.Contains(e.stdout, `"address": "`+address+`"`) {
			t.Errorf("by place: exit code %d, no address %s", e.code, address)
		}
	}
	if strings.Contains(e.stdout, `"zulip.acme.message"`) || strings.Contains(e.stdout, `"zulip.acme.message.none"`) {
		t.Error("by place there are subjects that are by type, or where no message is")
	}
	s.runs("asyncapi", "--realm", "acme", "--subjects", "by-topic").want(t, 2, "--subjects", "by-topic", "by-place")
	s.runs("asyncapi", "--realm", "a.b").want(t, 2, "--realm")
	s.runs("asyncapi", "--zuliprc", filepath.Join(s.TempDir(), "none")).want(t, 78, "none", "--realm, which needs no zuliprc")
	s.runs("asyncapi", "--realm", "acme", "--event-types", "a.b").want(t, 2, "--event-types")
	s.runs("asyncapi", "yaml").want(t, 2, "asyncapi takes options only")
}
