package zulipsim

import (
	"cmp"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// AccountType is what kind of user an account is (zerver/models/users.py). The zero value
// is the right one for a bridge.
type AccountType int

// The types of accounts. Incoming-webhook bots are refused by every endpoint.
const (
	GenericBot AccountType = iota
	Human
	IncomingWebhookBot
	OutgoingWebhookBot
	EmbeddedBot
)

// Account is a user of the organization, human or bot. [Server.Account] makes it; change
// its fields before the first request or message, and by [Account.Update] afterwards.
type Account struct {
	// Email is the address that the account logs in with; case does not matter.
	Email string
	// Key is the API key, 32 letters and digits. It is derived from the address, so that
	// each run has the same.
	Key string
	// FullName is the display name, by default made from the address.
	FullName string
	// ID is the user id, by default the next one.
	ID   int64
	Type AccountType
	// Guest makes the account a guest: it may not ask for all public channels.
	Guest bool
	// Owner makes the account an owner of the organization.
	Owner bool
	// HideEmail shows others a made-up address, as organizations do that keep addresses
	// private; messages of such a sender always have an avatar_url.
	HideEmail bool
	// Deactivated accounts get 401. A poll that waits is left alone.
	Deactivated bool
	// NoSubscriptions is how a new bot begins: subscribed to nothing but what Subscribe
	// names. The zero value is subscribed to every public channel, those that come later
	// included.
	NoSubscriptions bool
	// AllPublic is the bot's default_all_public_streams: what a register gets that does
	// not say all_public_streams.
	AllPublic bool
	// DefaultChannel is the bot's default_events_register_stream: the narrow of each
	// register with no or an empty narrow.
	DefaultChannel string
	// AvatarVersion counts changes of the picture; it is part of avatar_url. Zero: 1.
	AvatarVersion int
	// AvatarURL, if not empty, is a picture that does not come from gravatar.
	AvatarURL string

	server *Server
	system bool
	subs   map[*Channel]bool // said explicitly: in or out
	joined time.Time
}

// Account returns the account with that address, making it on first use: a generic bot
// with a key of its own.
func (s *Server) Account(email string) *Account {
	s.lock()
	defer s.mu.Unlock()
	return s.account(email)
}

func (s *Server) account(email string) *Account {
	if a := s.accounts[lower(email)]; a != nil {
		return a
	}
	name, _, _ := strings.Cut(email, "@")
	words := strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune(".-_+", r) })
	for i, w := range words {
		_, n := utf8.DecodeRuneInString(w)
		words[i] = strings.ToUpper(w[:n]) + w[n:]
	}
	a := &Account{
		Email:    email,
		Key:      makeKey(email, 0),
		FullName: cmp.Or(strings.Join(words, " "), email),
		ID:       s.nextUser,
		server:   s,
		subs:     make(map[*Channel]bool),
		joined:   time.Now(),
	}
	s.nextUser++
	s.accounts[lower(email)] = a
	s.people = append(s.people, a)
	return a
}

// Person returns the account with that address, making it on first use: a human with that
// display name.
func (s *Server) Person(email, fullName string) *Account {
	s.lock()
	defer s.mu.Unlock()
	known := s.accounts[lower(email)] != nil
	a := s.account(email)
	if !known {
		a.Type, a.FullName = Human, fullName
	}
	return a
}

// Update changes the account's fields while requests may be under way.
func (a *Account) Update(change func(*Account)) {
	a.server.lock()
	defer a.server.mu.Unlock()
	change(a)
}

// RegenerateKey gives the account a new API key and returns it. Polls that wait go on to
// their end.
func (a *Account) RegenerateKey() string {
	a.server.lock()
	defer a.server.mu.Unlock()
	a.Key = makeKey(a.Email+a.Key, 0)
	return a.Key
}

// makeKey derives 32 letters and digits from a text.
func makeKey(text string, n byte) string {
	sum := md5.Sum(append([]byte(text), n))
	return hex.EncodeToString(sum[:])
}

func (a *Account) isBot() bool { return a.Type != Human }

func (a *Account) botType() int {
	return map[AccountType]int{GenericBot: 1, IncomingWebhookBot: 2, OutgoingWebhookBot: 3, EmbeddedBot: 4}[a.Type]
}

// role is the number of Zulip's role.
func (a *Account) role() int {
	switch {
	case a.Guest:
		return 600
	case a.Owner:
		return 100
	}
	return 400
}

// shownEmail is the address that other users see.
func (a *Account) shownEmail() string {
	if a.HideEmail {
		return fmt.Sprintf("user%d@localhost", a.ID)
	}
	return a.Email
}

// avatar is the URL of the account's picture.
func (a *Account) avatar() string {
	if a.AvatarURL != "" {
		return a.AvatarURL
	}
	sum := md5.Sum([]byte(lower(a.Email)))
	return fmt.Sprintf("https://secure.gravatar.com/avatar/%x?d=identicon&version=%d", sum, cmp.Or(a.AvatarVersion, 1))
}

// avatarFor is avatar_url in answers: null for a client that makes gravatar URLs itself,
// unless it cannot know the address.
func (a *Account) avatarFor(clientGravatar bool) *string {
	if clientGravatar && a.AvatarURL == "" && !a.HideEmail {
		return nil
	}
	url := a.avatar()
	return &url
}

// Channel is a channel ("stream" on the wire). [Server.Channel] makes it: public, with
// everybody in it who is subscribed to all. Change its fields before the first message.
type Channel struct {
	Name string
	// ID is stream_id; SetID changes it.
	ID int64
	// Private channels are seen by those only whom Subscribe names.
	Private bool
	// HistoryPublic lets subscribers of a private channel read what was before them
	// (history_public_to_subscribers).
	HistoryPublic bool
	Description   string

	server  *Server
	created time.Time
	creator *Account
	first   int64 // id of its first message

	archived bool
}

// Channel returns the channel with that name, whatever its case, making it on first use,
// without an event.
func (s *Server) Channel(name string) *Channel {
	s.lock()
	defer s.mu.Unlock()
	return s.channel(name)
}

func (s *Server) channel(name string) *Channel {
	if c := s.channels[lower(name)]; c != nil {
		return c
	}
	c := &Channel{Name: name, ID: s.nextChan, server: s, created: time.Now()}
	s.nextChan++
	s.channels[lower(name)] = c
	s.channelIDs[c.ID] = c
	return c
}

// SetID gives the channel another id. Only before its first message.
func (c *Channel) SetID(id int64) {
	s := c.server
	s.lock()
	defer s.mu.Unlock()
	delete(s.channelIDs, c.ID)
	c.ID = id
	s.channelIDs[id] = c
	s.nextChan = max(s.nextChan, id+1)
}

// recipientID is the id under which Zulip files the channel's messages.
func (c *Channel) recipientID() int64 { return c.ID + 25 }

// historyShared says whether subscribers read what was before them.
func (c *Channel) historyShared() bool { return !c.Private || c.HistoryPublic }

// subscribed says whether the account is in the channel.
func (a *Account) subscribed(c *Channel) bool {
	if in, said := a.subs[c]; said {
		return in
	}
	return !a.NoSubscriptions && !c.Private
}

// subscribers returns who is in the channel, by id.
func (s *Server) subscribers(c *Channel) []*Account {
	var in []*Account
	for _, a := range s.people {
		if a.subscribed(c) {
			in = append(in, a)
		}
	}
	return in
}

// Subscribe subscribes the account to a channel, which is made if there is none; its
// queues get a subscription/add event, those of the other subscribers peer_add.
func (a *Account) Subscribe(channel string) {
	s := a.server
	s.lock()
	defer s.mu.Unlock()
	s.subscribe(s.channel(channel), a)
}

func (s *Server) subscribe(c *Channel, who ...*Account) {
	who = slices.DeleteFunc(slices.Clone(who), func(a *Account) bool { return a.subscribed(c) })
	if len(who) == 0 {
		return
	}
	var ids []int64
	for _, a := range who {
		a.subs[c] = true
		ids = append(ids, a.ID)
	}
	s.deliver(func() {
		for _, a := range who {
			ev := newEvent("subscription", "add")
			ev.raw("subscriptions", "["+s.subscriptionObject(c, true)+"]")
			s.emit(ev.done(), only(a))
		}
		ev := newEvent("subscription", "peer_add")
		ev.json("stream_ids", []int64{c.ID})
		ev.json("user_ids", ids)
		s.emit(ev.done(), func(q *queue) bool { return !slices.Contains(who, q.account) && q.account.sees(c) })
	})
}

// Unsubscribe takes the account out of a channel: subscription/remove, and then nothing
// more from there.
func (a *Account) Unsubscribe(channel string) {
	s := a.server
	s.lock()
	defer s.mu.Unlock()
	s.unsubscribe(s.channel(channel), a)
}

func (s *Server) unsubscribe(c *Channel, a *Account) bool {
	if !a.subscribed(c) {
		return false
	}
	a.subs[c] = false
	s.deliver(func() {
		ev := newEvent("subscription", "remove")
		var o object
		o.str("name", c.Name)
		o.int("stream_id", c.ID)
		ev.raw("subscriptions", "["+o.end()+"]")
		s.emit(ev.done(), only(a))
		ev = newEvent("subscription", "peer_remove")
		ev.json("stream_ids", []int64{c.ID})
		ev.json("user_ids", []int64{a.ID})
		s.emit(ev.done(), func(q *queue) bool { return q.account != a && q.account.sees(c) })
	})
	return true
}

// sees says whether the account knows of the channel at all.
func (a *Account) sees(c *Channel) bool { return a.subscribed(c) || !c.Private && !a.Guest }

// channelFields appends what every description of a channel has.
func (s *Server) channelFields(o *object, c *Channel) {
	o.bool("is_archived", c.archived)
	o.int("can_add_subscribers_group", 29)
	o.raw("can_administer_channel_group", `{"direct_members":[],"direct_subgroups":[]}`)
	o.int("can_send_message_group", 35)
	o.int("can_remove_subscribers_group", 31)
	o.int("can_subscribe_group", 29)
	if c.creator != nil {
		o.int("creator_id", c.creator.ID)
	} else {
		o.raw("creator_id", "null")
	}
	o.int("date_created", c.created.Unix())
	o.str("description", c.Description)
	if c.first != 0 {
		o.int("first_message_id", c.first)
	} else {
		o.raw("first_message_id", "null")
	}
	o.bool("is_recently_active", true)
	o.bool("history_public_to_subscribers", c.historyShared())
	o.bool("invite_only", c.Private)
	o.bool("is_web_public", false)
	o.raw("message_retention_days", "null")
	o.str("name", c.Name)
	o.str("rendered_description", render(c.Description))
	o.int("stream_id", c.ID)
	o.int("stream_post_policy", 1)
	o.bool("is_announcement_only", false)
}

// channelObject is a channel as GET /streams and stream/create have it.
func (s *Server) channelObject(c *Channel) string {
	var o object
	s.channelFields(&o, c)
	o.raw("stream_weekly_traffic", "null")
	return o.end()
}

// subscriptionObject is a channel as subscription/add has it, and with include_subscribers
// the state.
func (s *Server) subscriptionObject(c *Channel, subscribers bool) string {
	var o object
	o.raw("audible_notifications", "null")
	o.str("color", "#c6a8ad")
	o.raw("desktop_notifications", "null")
	o.raw("email_notifications", "null")
	o.bool("is_muted", false)
	o.bool("pin_to_top", false)
	o.raw("push_notifications", "null")
	o.raw("wildcard_mentions_notify", "null")
	o.bool("in_home_view", true)
	o.raw("stream_weekly_traffic", "null")
	if subscribers {
		ids := []int64{}
		for _, a := range s.subscribers(c) {
			ids = append(ids, a.ID)
		}
		o.json("subscribers", ids)
	}
	s.channelFields(&o, c)
	return o.end()
}

// userObject is an account as register's realm_users has it.
func (s *Server) userFields(o *object, a *Account, active, clientGravatar bool) {
	o.str("email", a.shownEmail())
	o.int("user_id", a.ID)
	o.int("avatar_version", int64(cmp.Or(a.AvatarVersion, 1)))
	o.bool("is_admin", a.Owner)
	o.bool("is_owner", a.Owner)
	o.bool("is_guest", a.Guest)
	o.int("role", int64(a.role()))
	o.bool("is_bot", a.isBot())
	o.str("full_name", a.FullName)
	o.str("timezone", "")
	if active {
		o.bool("is_active", !a.Deactivated)
	}
	o.str("date_joined", a.joined.UTC().Format("2006-01-02T15:04+00:00"))
	o.str("delivery_email", a.Email)
	o.json("avatar_url", a.avatarFor(clientGravatar))
	if a.isBot() {
		o.int("bot_type", int64(a.botType()))
		o.raw("bot_owner_id", "null")
	} else {
		o.raw("profile_data", "{}")
	}
}

// DeactivateRealm deactivates the organization: every queue gets realm/deactivated, and
// every later request 401.
func (s *Server) DeactivateRealm() {
	s.lock()
	defer s.mu.Unlock()
	s.closedDown = true
	s.deliver(func() {
		ev := newEvent("realm", "deactivated")
		ev.int("realm_id", 2)
		s.emit(ev.done(), everyone)
	})
}
