package bridge

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"strings"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/redact"
	"zulip-nats/subjects"
)

// belongs says whether a queue of that record is one of the configured organization, and
// its events are where ours will be. A stream belongs to one organization: another one's
// ids would be taken for its own. And it has one layout: who reads it would miss what is
// in another. The record of an organization that moved is written again under its new
// address. Where the record is gone, the events themselves show the layout.
func (b *Bridge) belongs(ctx context.Context, r *events.Queue) (*events.Queue, error) {
	if r == nil {
		return nil, b.laidOut(ctx)
	}
	switch {
	case r.Subjects != layoutName(b.realm):
		return nil, b.otherLayout(cmp.Or(r.Subjects, subjects.ByType.String()))
	case r.Site == b.cfg.Site:
		return r, nil
	case sameSite(r.Site, b.cfg.Site),
		b.cfg.MovedFrom != "" && sameSite(redact.URL(r.Site), redact.URL(b.cfg.MovedFrom)):
		logevent.OrganizationMoved.Info(b.log).Str("was", redact.URL(r.Site)).Str("site", redact.URL(b.cfg.Site)).
			Msg("the organization moved: it is the same under a new address")
		moved := *r
		moved.Site, moved.MovedFrom = b.cfg.Site, r.Site
		return &moved, nil
	}
	was := redact.URL(r.Site)
	return nil, &ConfigError{fmt.Sprintf("the stream holds events of %s under the realm name %s, and the configured "+
		"site is %s: if the organization moved, say so once with --moved-from %s; two organizations must not share a "+
		"name: give this one another with --realm, or use another stream", was, b.realm, redact.URL(b.cfg.Site), was)}
}

// layoutName is a layout as a queue's record has it: empty is by type, as in records from
// before there was another.
func layoutName(r subjects.Realm) string {
	if l := r.Layout(); l != subjects.ByType {
		return l.String()
	}
	return ""
}

// laidOut says whether the stream holds events of ours in another layout than ours.
func (b *Bridge) laidOut(ctx context.Context) error {
	other := subjects.ByPlace
	if b.byPlace() {
		other = subjects.ByType
	}
	for _, filter := range b.realm.By(other).Events() {
		found := false
		if err := b.patiently(ctx, func() error {
			m, err := newestOurs(ctx, b.stream, filter)
			found = m != nil
			return err
		}); err != nil {
			return err
		}
		if found {
			return b.otherLayout(other.String())
		}
	}
	return nil
}

func (b *Bridge) otherLayout(has string) error {
	return &ConfigError{fmt.Sprintf("the stream has the events of %s %s, and --subjects says %s: a stream keeps its layout, "+
		"since who reads one would miss what is in the other. Go on with --subjects %s; or begin another stream: run a "+
		"second instance with --realm and a new name and --subjects %s, let the services follow that one, then stop this "+
		"one for good with --delete-queue", b.realm, has, b.realm.Layout(), has, b.realm.Layout())}
}

// sameSite says whether two addresses are those of one organization: the host counts, and
// a port that is not the scheme's own, and the path; http or https does not.
func sameSite(a, b string) bool {
	return organization(a) == organization(b)
}

// organization is what of an address says which organization it is; the address itself if
// it is none.
func organization(site string) string {
	u, err := url.Parse(site)
	if err != nil || u.Host == "" {
		return site
	}
	port := u.Port()
	if own := map[string]string{"http": "80", "https": "443"}[u.Scheme]; port == own {
		port = ""
	}
	return strings.ToLower(u.Hostname()) + ":" + port + strings.TrimRight(u.Path, "/")
}
