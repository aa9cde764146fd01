package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestSchema(t *testing.T) {
	s := begin(t)
	e := s.runs("schema")
	for _, line := range []string{"TYPE  ", "\nheartbeat\n", "\nreaction                      add, remove\n",
		"\ngap-opened                    (a record of the bridge's own)\n"} {
		if e.code != 0 || e.stderr != "" || !strings.Contains(e.stdout, line) {
			t.Errorf("schema: exit code %d, stderr %q, and no %q in\n%s", e.code, e.stderr, line, e.stdout)
		}
	}
	for name, file := range map[string]string{"reaction": "events/reaction.json", "gap-opened": "records/gap-opened.json"} {
		want, err := os.ReadFile("../schema/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if e := s.runs("schema", name); e.code != 0 || e.stderr != "" || !bytes.Equal([]byte(e.stdout), want) {
			t.Errorf("schema %s: exit code %d, stderr %q:\n%s", name, e.code, e.stderr, e.stdout)
		}
	}
	if e := s.runs("schema", "--all"); e.code != 0 || e.stderr != "" ||
		!strings.Contains(e.stdout, `"$ref": "#/$defs/event.message"`) {
		t.Errorf("schema --all: exit code %d, stderr %q:\n%.500s", e.code, e.stderr, e.stdout)
	}
	for args, says := range map[string]string{
		"mesage": "is message meant?", "channel": "is stream meant?", "zulip.acme.reaction": "is reaction meant?",
		"skiped": "is skipped meant?", "gap": "is gap-closed meant?", "bridge.queu": "is queue meant?",
		"message reaction": "schema --all", "message --all": "before the TYPE", "--all message": "give one of them",
		"--al": "is --all meant?",
	} {
		s.runs(append([]string{"schema"}, strings.Fields(args)...)...).want(t, 2, says)
	}
}
