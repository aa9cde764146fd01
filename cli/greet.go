package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/subjects"
)

// greeting is what the log says at the start: a line on who we are to Zulip, one on what
// we shall get, and a warning for each thing that was asked for and cannot come. Nothing
// of it is needed to run: what Zulip does not tell is left out.
type greeting struct {
	realm   subjects.Realm
	account poller.Account
	queue   poller.Options
	poller  *poller.Poller
	log     zerolog.Logger

	in     bool       // Zulip has let us in
	me     *poller.Me // nil: Zulip did not say
	silent error      // why it did not
	stream string     // its name, once it is open
	keeps  string     // how long it keeps a message; empty: not known
	look   string     // the command that shows what comes; empty: none is named
	said   bool       // the second line

	// opened is called with the stream's name and its last sequence each time that the
	// bridge has opened it; may be nil.
	opened func(name string, last uint64)
}

// who asks Zulip who we are, and says it. The error is what an operator has to mend; that
// Zulip does not answer is none.
func (g *greeting) who(ctx context.Context) error {
	me, err := g.poller.Me(ctx)
	_, refused := errors.AsType[*poller.AuthError](err)
	_, unusable := errors.AsType[*poller.ConfigError](err)
	_, answered := errors.AsType[*poller.RefusedError](err) // the account was looked at before
	g.in = err == nil || answered
	switch {
	case refused, unusable:
		return err
	case ctx.Err() != nil: // a stop is for others to judge
	case err != nil:
		g.silent = err // where Zulip is away, the next request says so
	default:
		g.known(me)
	}
	return nil
}

// letIn waits until Zulip has let us in. A wrong key, or a typo in the site, must not
// leave a stream behind.
func (g *greeting) letIn(ctx context.Context) error {
	if g.in {
		return nil
	}
	logevent.StreamAwaitsKey.Info(g.log).Str("site", redact.URL(g.account.Site)).
		Msg("there is no stream yet: it is made when Zulip has let us in")
	me, err := g.poller.LetIn(ctx)
	if err != nil {
		return err
	}
	g.in = true
	if me != nil {
		g.known(me)
	}
	return nil
}

// known says who we are.
func (g *greeting) known(me *poller.Me) {
	g.me = me
	logevent.LetIn.Info(g.log).Str("site", redact.URL(g.account.Site)).Str("account", g.account.Email).
		Str("kind", kindOf(me)).Str("role", me.Role).Msg("Zulip lets us in")
	if text := g.personal(); text != "" {
		logevent.PersonalKey.Warn(g.log).Str("account", g.account.Email).Msg(text)
	}
}

// kindOf is what an account is, in a word.
func kindOf(me *poller.Me) string {
	if me.Bot {
		return "bot"
	}
	return "person"
}

// personal says what harm a person's key does; empty for a bot's, and for one that does
// none.
func (g *greeting) personal() string {
	if g.me.Bot {
		return ""
	}
	// zerver/tornado/event_queue.py, receiver_is_off_zulip; zerver/models/users.py,
	// bot_owner_user_ids.
	var harm []string
	if g.gets("message") {
		harm = append(harm, "as long as it is followed Zulip takes that person to be online and sends them no "+
			"notifications")
	}
	if g.gets("realm_bot") {
		harm = append(harm, "the stream gets the API keys of that person's bots, or of all bots if they administer "+
			"the organization (realm_bot events; newer Zulips send other tokens there)")
	}
	if len(harm) == 0 {
		return ""
	}
	return "this is a person's key, not a bot's: " + strings.Join(harm, "; and ") +
		". Use the key of a bot, or name the types that are wanted with --event-types"
}

// gets says whether events of a type were asked for.
func (g *greeting) gets(kind string) bool {
	return (g.queue.EventTypes == nil || slices.Contains(g.queue.EventTypes, kind)) &&
		!slices.Contains(g.queue.ExcludeTypes, kind)
}

// age is a stream's max_age for people.
func age(d time.Duration) string {
	if d <= 0 {
		return "no limit of age"
	}
	return period(d)
}

// what says what we shall get, once; a standby gets it when it leads.
func (g *greeting) what(standby bool) {
	if g.said {
		return
	}
	g.said = true
	if g.me == nil && g.silent != nil {
		logevent.AccountUnknown.Info(g.log).Str("site", redact.URL(g.account.Site)).Str("account", g.account.Email).
			Str("zulip", g.silent.Error()).Msg("Zulip does not say who we are there: going on without")
	}
	line := logevent.StreamUsed.Info(g.log).Str("subjects", g.realm.All()).
		Stringer("layout", g.realm.Layout()).Str("stream", g.stream)
	if g.keeps != "" {
		line.Str("keeps", g.keeps)
	}
	if channels := g.poller.Channels(); channels != nil {
		line.Int("channels", channels.Subscribed)
	}
	if g.look != "" {
		line.Str("look", g.look)
	}
	if standby {
		line.Msg("events will go to this stream when this instance leads")
		return
	}
	line.Msg("events go to this stream")
}

// following says what we shall get of the queue that is followed now, and what of it can
// never come.
func (g *greeting) following() {
	g.what(false)
	for _, n := range g.never() {
		n.log(g.log)
	}
}

// notice is a warning: what it is about (a channel, a type, an account) and which one, the
// sentence, and how its line in the log begins.
type notice struct {
	about, which, text string
	line               func(zerolog.Logger) *zerolog.Event
}

func (n notice) log(log zerolog.Logger) { n.line(log).Msg(n.text) }

// never says what of that which was asked for cannot come to this account.
func (g *greeting) never() (list []notice) {
	channels := g.poller.Channels()
	for _, term := range g.queue.Narrow {
		if channels != nil && (term[0] == "channel" || term[0] == "stream") && !channels.Sees(term[1]) {
			list = append(list, notice{about: "channel", which: term[1],
				text: "--narrow names a channel that this account does not see, so no message comes: correct the name, " +
					"or subscribe the account to it if it is private",
				line: func(l zerolog.Logger) *zerolog.Event {
					return logevent.ChannelUnseen.Warn(l).Str("channel", term[1])
				}})
		}
	}
	// A narrow brings messages of public channels without a subscription
	// (zerver/tornado/event_queue.py).
	if g.queue.AllPublicStreams || len(g.queue.Narrow) > 0 || !slices.ContainsFunc(ofMessages, g.gets) {
		return list
	}
	remedy := "subscribe it to the channels that are wanted (in Zulip: Channel settings, Subscribers)"
	if g.me == nil || g.me.Role != poller.Guest { // Zulip refuses it to guests
		remedy += ", or give --all-public-streams for the messages of all public channels"
	}
	text := ""
	switch {
	case channels != nil && channels.Subscribed == 0:
		text = "the account is subscribed to no channel, so nothing of channels comes, only direct messages: "
	case channels == nil && g.me != nil && g.me.Empty:
		text = "the account never got a message; if it is subscribed to no channel, none of channels will come: "
	default:
		return list
	}
	return append(list, notice{about: "account", which: g.account.Email, text: text + remedy,
		line: func(l zerolog.Logger) *zerolog.Event {
			return logevent.NoChannels.Warn(l).Str("account", g.account.Email)
		}})
}

// ofMessages are the types that tell of messages, which only subscribers get.
var ofMessages = []string{"message", "update_message", "delete_message", "reaction", "submessage", "typing",
	"update_message_flags"}

// unknownTypes are the types that no Zulip sends: it takes any name, and nothing ever
// comes, or is left out.
func unknownTypes(q poller.Options) (list []notice) {
	for i, name := range slices.Concat(q.EventTypes, q.ExcludeTypes) {
		if like, known := poller.NearestType(name); !known {
			name = redact.Text(name)
			so := "Zulip takes any name without a word, and none may ever come"
			if i >= len(q.EventTypes) {
				so = "nothing may ever be left out by it"
			}
			list = append(list, notice{about: "type", which: name,
				text: fmt.Sprintf("no Zulip known so far has events of the type %s (is %s meant?): %s", name, like, so),
				line: func(l zerolog.Logger) *zerolog.Event {
					return logevent.TypeUnknown.Warn(l).Str("type", name).Str("nearest", like)
				}})
		}
	}
	return list
}
