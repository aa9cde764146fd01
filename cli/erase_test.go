package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream/natstest"
)

func TestEraseDeletedOption(t *testing.T) {
	checked := func(args ...string) (Config, error) {
		c, err := configured(t, args...)
		return c, errors.Join(err, c.check())
	}
	begin(t)
	t.Setenv("ZULIP_NATS_ERASE_DELETED", "true")
	if c, err := checked(); err != nil || !c.Realms[0].EraseDeleted {
		t.Errorf("ZULIP_NATS_ERASE_DELETED=true: %v, %v", c.Realms[0].EraseDeleted, err)
	}
	if c, err := checked("--event-types", "message,delete_message"); err != nil || !c.Realms[0].EraseDeleted {
		t.Errorf("with delete_message among the types: %v", err)
	}
	for _, without := range [][]string{{"--event-types", "message,reaction"}, {"--exclude-types", "typing,delete_message"}} {
		_, err := checked(without...)
		if err == nil || !strings.Contains(err.Error(), "--erase-deleted") || !strings.Contains(err.Error(), "delete_message") {
			t.Errorf("%v: %v", without, err)
		}
	}
	if _, err := checked("--event-types", "message,reaction", "--erase-deleted=false"); err != nil {
		t.Errorf("switched off: %v", err)
	}
}

// What keeps messages from being erased is found by check, and at the start of run, and
// ends it with a sentence.
func TestEraseDeletedRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		may    *server.SubjectPermission
		config jetstream.StreamConfig
		words  []string
	}{
		{"deny_delete", nil, jetstream.StreamConfig{DenyDelete: true}, []string{"ZULIP_acme", "deny_delete", "--erase-deleted"}},
		{"no right", &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.DELETE.ZULIP_acme"}},
			jetstream.StreamConfig{}, []string{"$JS.API.STREAM.MSG.DELETE.ZULIP_acme", "--erase-deleted"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := looks(t, func(o *server.Options) {
				o.Users = []*server.User{{Username: "bridge", Password: "b", Permissions: &server.Permissions{Publish: test.may}},
					{Username: "operator", Password: "o"}}
				o.NoAuthUser = "operator"
			})
			test.config.Name, test.config.Subjects = "ZULIP_acme", []string{"zulip.acme.>"}
			natstest.CreateStream(t, l.nats.JetStream(), test.config)
			as := []string{"--realm", "acme", "--nats-user", "bridge", "--nats-password", "b"}
			list, code := l.finds(append(as, "--erase-deleted")...)
			failed := with(list, "fail")
			if code != 1 || len(failed) != 1 || failed[0].What != "right to erase" {
				t.Errorf("check: exit code %d, %v", code, failed)
			} else {
				for _, word := range test.words {
					if !strings.Contains(failed[0].Remedy, word) {
						t.Errorf("%q does not say %q", failed[0].Remedy, word)
					}
				}
			}
			if list, code := l.finds(as...); code != 0 {
				t.Errorf("check without the option: exit code %d, %v", code, with(list, "fail"))
			}
			l.args[0] = "run"
			l.runs(append(append(l.args, as...), "--erase-deleted")...).want(t, 78, test.words...)
		})
	}
	l := looks(t)
	list, code := l.finds("--erase-deleted")
	found := false
	for _, f := range with(list, "ok") {
		found = found || f.What == "right to erase"
	}
	if code != 0 || !found {
		t.Errorf("check where all is well: exit code %d, %v", code, list)
	}
}
