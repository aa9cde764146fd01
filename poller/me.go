package poller

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Me is who Zulip takes us for.
type Me struct {
	Bot   bool
	Role  string // owner, administrator, moderator, member or guest
	Empty bool   // the account never got a message; false where Zulip does not say
}

// Channels is what the account has of channels.
type Channels struct {
	Subscribed int             // how many it is subscribed to
	seen       map[string]bool // names in lower case of all that it may see
}

// Sees reports whether the account may see a channel of that name, subscribed or not.
// Case does not count.
func (c *Channels) Sees(name string) bool { return c.seen[strings.ToLower(name)] }

// me asks who we are to Zulip (GET /users/me). Errors as of register.
func (c *Client) me(ctx context.Context) (*Me, error) {
	var a struct {
		Bot   bool `json:"is_bot"`
		Role  int  `json:"role"` // level 59 on
		Owner bool `json:"is_owner"`
		Admin bool `json:"is_admin"`
		Guest bool `json:"is_guest"`
		// In the account's own history, so not those of public channels that it is not
		// in.
		Newest int64 `json:"max_message_id"`
	}
	if err := c.call(ctx, "GET", "users/me", nil, &a); err != nil {
		return nil, err
	}
	me := &Me{Bot: a.Bot, Role: roles[a.Role], Empty: a.Newest < 0}
	switch {
	case me.Role != "":
	case a.Role != 0:
		me.Role = fmt.Sprintf("role %d", a.Role)
	case a.Owner:
		me.Role = roles[100]
	case a.Admin:
		me.Role = roles[200]
	case a.Guest:
		me.Role = roles[600]
	default:
		me.Role = roles[400]
	}
	return me, nil
}

// Guest is the Role of guests, to whom Zulip refuses more than to others.
const Guest = "guest"

// roles are Zulip's (api_docs/roles-and-permissions.md).
var roles = map[int]string{100: "owner", 200: "administrator", 300: "moderator", 400: "member", 600: Guest}

// meTime is how long Me waits for an answer.
const meTime = 5 * time.Second

// Me asks who we are to Zulip, once, for 5 s at most. An *AuthError or *ConfigError is
// for an operator to mend. Any other error says only that Zulip does not tell; what may
// heal is waited for by other methods.
func (p *Poller) Me(ctx context.Context) (*Me, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, meTime, errSilent)
	defer cancel()
	me, err := p.Client.me(ctx)
	if t, ok := errors.AsType[*transientError](err); ok && t.limited {
		p.rest.retryAt, p.rest.exact = time.Now().Add(t.wait), true
	}
	if err != nil && context.Cause(ctx) == errSilent {
		err = &transientError{text: fmt.Sprintf("Zulip did not answer GET /api/v1/users/me for %v", meTime)}
	}
	if _, ok := errors.AsType[*RefusedError](err); ok || err == nil {
		p.accepted = true // the account was let in
	}
	p.count(&p.rest, err)
	return me, err
}

// LetIn waits until Zulip has let the account in, retrying like Next, and says who we
// are; nil where Zulip lets us in and does not tell. An *AuthError, a *ConfigError or
// ctx's error says that it did not.
func (p *Poller) LetIn(ctx context.Context) (*Me, error) {
	var me *Me
	other := false
	err := p.retry(ctx, &p.rest, func() (err error) {
		// It may be this request alone that is not served, by a proxy say. So every other
		// try is one that we cannot do without.
		if other = !other; !other {
			if err := p.Client.call(ctx, "GET", "messages",
				url.Values{"anchor": {"newest"}, "num_before": {"0"}, "num_after": {"0"}}, new(struct{})); err != nil {
				return err
			}
			me, _ = p.Client.me(ctx) // nil: it is let in, and not told who it is
			return nil
		}
		me, err = p.Client.me(ctx)
		return err
	})
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return nil, nil // the account was looked at before
	}
	return me, err
}

// Channels tells of the account's channels as of the first Register; nil if that is not
// known.
func (p *Poller) Channels() *Channels { return p.channels }
