package bridge

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/redact"
)

// belongs says whether a queue of that record is one of the configured organization. A
// stream belongs to one: another one's ids would be taken for its own. The record of an
// organization that moved is written again under its new address. And it has one layout;
// where the record is gone, the events themselves show it.
func (b *Bridge) belongs(ctx context.Context, r *events.Queue) (*events.Queue, error) {
	if r == nil {
		return nil, b.laidOut(ctx)
	}
	if err := sameLayout(r, b.realm); err != nil {
		return nil, err
	}
	switch {
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
