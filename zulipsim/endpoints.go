package zulipsim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func (c *call) serverSettings() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	c.succeed(func(o *object) {
		o.raw("authentication_methods",
			`{"password":true,"dev":false,"email":true,"ldap":false,"remoteuser":false,"github":false,`+
				`"azuread":false,"gitlab":false,"google":false,"apple":false,"saml":false,"openid connect":false}`)
		o.str("zulip_version", s.Version)
		o.str("zulip_merge_base", "")
		o.int("zulip_feature_level", int64(s.FeatureLevel))
		o.bool("push_notifications_enabled", false)
		o.bool("is_incompatible", false)
		o.bool("email_auth_enabled", true)
		o.bool("require_email_format_usernames", true)
		if s.FeatureLevel >= 257 {
			o.str("realm_url", s.RealmURL)
		}
		o.str("realm_name", s.RealmName)
		o.str("realm_icon", "/user_avatars/3/realm/icon.png?version=4")
		o.str("realm_description", "<p>The <strong>"+s.RealmName+"</strong> organization</p>")
		o.bool("realm_web_public_access_enabled", true)
		o.raw("external_authentication_methods", "[]")
		o.str("realm_uri", s.RealmURL)
	})
}

func (c *call) usersMe() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	c.succeed(func(o *object) {
		s.userFields(o, c.account, true, false)
		o.int("max_message_id", s.newest(c.account))
	})
}

// newest is the id of the newest message in the account's own history, -1 if there is
// none.
func (s *Server) newest(a *Account) int64 {
	for _, m := range slices.Backward(s.messages) {
		if !m.ghost && m.row(a) != nil {
			return m.id
		}
	}
	return -1
}

func (c *call) user() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.people, func(a *Account) bool { return a.ID == c.id() && !a.system })
	if i < 0 {
		c.refused(bad("No such user"))
		return
	}
	c.succeed(func(o *object) {
		var u object
		s.userFields(&u, s.people[i], true, false)
		o.raw("user", u.end())
	})
}

// streams is GET /streams: the channels that the account can see, by id.
func (c *call) streams() {
	s := c.s
	for _, name := range []string{"include_public", "include_subscribed", "include_default", "include_all",
		"include_all_active",
		"include_owner_subscribed", "include_web_public"} {
		var yes bool
		if _, r := c.value(name, &yes, "a boolean"); r != nil {
			c.refused(r)
			return
		}
	}
	s.lock()
	defer s.mu.Unlock()
	ids := make([]int64, 0, len(s.channelIDs))
	for id := range s.channelIDs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var list []string
	for _, id := range ids {
		if ch := s.channelIDs[id]; c.account.sees(ch) {
			list = append(list, s.channelObject(ch))
		}
	}
	c.succeed(func(o *object) { o.raw("streams", "["+strings.Join(list, ",")+"]") })
}

func (c *call) stream() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	ch := s.channelIDs[c.id()]
	if ch == nil || !c.account.sees(ch) {
		c.refused(bad("Invalid channel ID"))
		return
	}
	c.succeed(func(o *object) { o.raw("stream", s.channelObject(ch)) })
}

// principals reads whom a change of subscriptions is about: ids or addresses; by default
// who asks.
func (c *call) principals() ([]*Account, *refusal) {
	var who []any
	if given, r := c.value("principals", &who, "a list"); r != nil || !given || len(who) == 0 {
		return []*Account{c.account}, r
	}
	var list []*Account
	for _, p := range who {
		i := slices.IndexFunc(c.s.people, func(a *Account) bool {
			if id, ok := p.(float64); ok {
				return a.ID == int64(id)
			}
			return lower(a.Email) == lower(fmt.Sprint(p))
		})
		if i < 0 {
			return nil, bad("No such user")
		}
		list = append(list, c.s.people[i])
	}
	return list, nil
}

// addSubscriptions is POST /users/me/subscriptions; channels that do not exist are made.
func (c *call) addSubscriptions() {
	s := c.s
	var wanted []struct{ Name, Description string }
	given, r := c.value("subscriptions", &wanted, "a list")
	if r == nil && !given {
		r = missing("subscriptions")
	}
	var private, shared bool
	shared = true
	if r == nil {
		_, r = c.value("invite_only", &private, "a boolean")
	}
	if r == nil {
		_, r = c.value("history_public_to_subscribers", &shared, "a boolean")
	}
	s.lock()
	defer s.mu.Unlock()
	var who []*Account
	if r == nil {
		who, r = c.principals()
	}
	if r != nil {
		c.refused(r)
		return
	}
	slices.SortFunc(who, func(a, b *Account) int { return int(a.ID - b.ID) })
	subscribed, already := make(map[*Account][]string), make(map[*Account][]string)
	for _, w := range wanted {
		ch := s.channels[lower(w.Name)]
		fresh := ch == nil
		if fresh {
			ch = s.channel(w.Name)
			ch.Private, ch.HistoryPublic, ch.Description, ch.creator = private, shared, w.Description, c.account
			for _, a := range s.people { // a new channel begins with those who are named
				a.subs[ch] = false
			}
			b := newEvent("stream", "create")
			b.raw("streams", "["+s.channelObject(ch)+"]")
			ev := b.done()
			s.deliver(func() {
				s.emit(ev, func(q *queue) bool { return slices.Contains(who, q.account) || q.account.sees(ch) })
			})
		}
		for _, a := range who {
			if a.subscribed(ch) {
				already[a] = append(already[a], ch.Name)
			} else {
				subscribed[a] = append(subscribed[a], ch.Name)
			}
		}
		s.subscribe(ch, who...)
		if fresh {
			kind := "Public"
			if ch.Private {
				kind = "Private, shared history"
				if !ch.HistoryPublic {
					kind = "Private, protected history"
				}
			}
			text := fmt.Sprintf("**%s** channel created by @_**%s|%d**. **Description:**\n```` quote\n%s\n````", kind,
				c.account.FullName,
				c.account.ID, cmp.Or(ch.Description, "*No description.*"))
			s.notice(ch, "channel events", text)
		}
	}
	c.succeed(func(o *object) {
		for _, part := range []struct {
			name string
			of   map[*Account][]string
		}{{"subscribed", subscribed}, {"already_subscribed", already}} {
			var list object
			for _, a := range who {
				if names := part.of[a]; names != nil {
					list.json(strconv.FormatInt(a.ID, 10), names)
				}
			}
			o.raw(part.name, list.end())
		}
	})
}

func (c *call) removeSubscriptions() {
	s := c.s
	var names []string
	given, r := c.value("subscriptions", &names, "a list")
	if r == nil && !given {
		r = missing("subscriptions")
	}
	s.lock()
	defer s.mu.Unlock()
	var who []*Account
	if r == nil {
		who, r = c.principals()
	}
	if r != nil {
		c.refused(r)
		return
	}
	removed, not := []string{}, []string{}
	for _, name := range names {
		ch := s.channels[lower(name)]
		if ch == nil {
			c.refused(bad("Channel(s) (%s) do not exist", name))
			return
		}
		for _, a := range who {
			if s.unsubscribe(ch, a) {
				removed = append(removed, ch.Name)
			} else {
				not = append(not, ch.Name)
			}
		}
	}
	c.succeed(func(o *object) {
		o.json("removed", removed)
		o.json("not_removed", not)
	})
}

// sendMessage is POST /messages.
func (c *call) sendMessage() {
	s := c.s
	m, r := c.readMessage()
	if r != nil {
		c.refused(r)
		return
	}
	s.lock()
	defer s.mu.Unlock()
	if m.Channel != "" && s.channels[lower(m.Channel)] == nil {
		c.refused(&refusal{"STREAM_DOES_NOT_EXIST", fmt.Sprintf("Channel '%s' does not exist", m.Channel),
			func(o *object) { o.str("stream", m.Channel) }})
		return
	}
	msg := s.compose(m)
	first := msg.channel != nil && !c.account.isBot() && !slices.ContainsFunc(s.messages, func(o *message) bool {
		return o.channel == msg.channel && o.sender == c.account && lower(o.topic) == lower(msg.topic)
	})
	if first {
		// A human who begins to write in a topic follows it from now on; his own queues
		// hear of that before the message.
		muted := newEvent("muted_topics", "")
		muted.raw("muted_topics", "[]")
		topic := newEvent("user_topic", "")
		topic.int("stream_id", msg.channel.ID)
		topic.str("topic_name", msg.topic)
		topic.int("last_updated", msg.sent.Unix())
		topic.int("visibility_policy", 3)
		a := c.account
		s.deliver(func() {
			s.emit(muted.done(), only(a))
			s.emit(topic.done(), only(a))
		})
	}
	s.commit(msg, m)
	c.succeed(func(o *object) {
		o.int("id", msg.id)
		if first {
			o.int("automatic_new_visibility_policy", 3)
		}
	})
}

// readMessage reads the arguments of POST /messages.
func (c *call) readMessage() (m Message, r *refusal) {
	kind, _ := c.arg("type")
	to, _ := c.arg("to")
	m.Topic, _ = c.arg("topic")
	if old, ok := c.arg("subject"); ok && m.Topic == "" {
		m.Topic = old
	}
	content, ok := c.arg("content")
	m.SenderQueue, _ = c.arg("queue_id")
	m.LocalID, _ = c.arg("local_id")
	m.Sender, m.Client, m.Content = c.account.Email, c.clientName(), strings.TrimRight(content, " \n\t")
	switch {
	case !ok:
		return m, missing("content")
	case strings.TrimSpace(content) == "":
		return m, bad("Message must not be empty")
	case strings.ContainsRune(content, 0):
		return m, bad("Message must not contain null bytes")
	}
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	switch kind {
	case "channel", "stream":
		m.Channel = strings.Trim(to, `"`)
		if id, err := strconv.ParseInt(to, 10, 64); err == nil {
			ch := s.channelIDs[id]
			if ch == nil {
				return m, &refusal{"STREAM_DOES_NOT_EXIST", fmt.Sprintf("Channel with ID '%d' does not exist", id),
					func(o *object) { o.int("stream_id", id) }}
			}
			m.Channel = ch.Name
		}
	case "direct", "private":
		var list []any
		if !json.Valid([]byte(to)) {
			for one := range strings.SplitSeq(to, ",") {
				list = append(list, strings.TrimSpace(one))
			}
		} else if r := decode("to", to, &list, "a list"); r != nil {
			return m, r
		}
		for _, one := range list {
			i := slices.IndexFunc(s.people, func(a *Account) bool {
				if id, ok := one.(float64); ok {
					return a.ID == int64(id)
				}
				return lower(a.Email) == lower(fmt.Sprint(one)) || a.shownEmail() == lower(fmt.Sprint(one))
			})
			if i < 0 {
				return m, bad("Invalid email '%v'", one)
			}
			m.To = append(m.To, s.people[i].Email)
		}
	default:
		return m, bad("Invalid message type")
	}
	return m, nil
}

// own finds the message that the path names, for a change of it.
func (c *call) own() (*message, *refusal) {
	m := c.s.find(c.id())
	if m == nil || !c.s.readable(c.account, m) {
		return nil, bad("Invalid message(s)")
	}
	return m, nil
}

func (c *call) editMessage() {
	s := c.s
	e := Edit{By: c.account.Email}
	if v, ok := c.arg("content"); ok {
		e.Content = &v
	}
	if v, ok := c.arg("topic"); ok {
		e.Topic = &v
	}
	mode, _ := c.arg("propagate_mode")
	_, r := c.value("send_notification_to_new_thread", &e.Notice, "a boolean")
	var old bool
	if r == nil {
		_, r = c.value("send_notification_to_old_thread", &old, "a boolean")
	}
	var to int64
	var moved bool
	if r == nil {
		moved, r = c.value("stream_id", &to, "an integer")
	}
	if _, given := c.arg("send_notification_to_new_thread"); !given {
		e.Notice = e.Topic != nil
	}
	s.lock()
	defer s.mu.Unlock()
	var m *message
	if r == nil {
		m, r = c.own()
	}
	if r == nil && moved {
		if ch := s.channelIDs[to]; ch == nil {
			r = bad("Invalid channel ID")
		} else {
			e.Channel = &ch.Name
		}
	}
	switch {
	case r != nil:
	case e.Content == nil && e.Topic == nil && e.Channel == nil:
		r = bad("Nothing to change")
	case e.Content != nil && m.sender != c.account:
		r = bad("You don't have permission to edit this message")
	}
	if r != nil {
		c.refused(r)
		return
	}
	if m.channel != nil && (mode == "change_all" || mode == "change_later") {
		for _, o := range s.messages {
			if o.channel == m.channel && lower(o.topic) == lower(m.topic) && !o.ghost &&
				(mode == "change_all" || o.id >= m.id) {
				e.Also = append(e.Also, o.id)
			}
		}
	}
	s.edit(m, e)
	c.succeed(func(o *object) { o.raw("detached_uploads", "[]") })
}

func (c *call) deleteMessage() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	m, r := c.own()
	if r == nil && m.sender != c.account && !c.account.Owner {
		r = bad("You don't have permission to delete this message")
	}
	if r != nil {
		c.refused(r)
		return
	}
	s.delete([]int64{m.id})
	c.succeed(nil)
}

func (c *call) addReaction()    { c.changeReaction("add") }
func (c *call) removeReaction() { c.changeReaction("remove") }

func (c *call) changeReaction(op string) {
	s := c.s
	name, ok := c.arg("emoji_name")
	c.arg("emoji_code")
	c.arg("reaction_type")
	s.lock()
	defer s.mu.Unlock()
	m, r := c.own()
	if r == nil && !ok {
		r = missing("emoji_name")
	}
	if r != nil {
		c.refused(r)
		return
	}
	if !s.react(m, c.account, name, op) {
		r = &refusal{code: "REACTION_ALREADY_EXISTS", msg: "Reaction already exists."}
		if op == "remove" {
			r = &refusal{code: "REACTION_DOES_NOT_EXIST", msg: "Reaction doesn't exist."}
		}
		c.refused(r)
		return
	}
	c.succeed(nil)
}

func (c *call) messageFlags() {
	s := c.s
	var ids []int64
	given, r := c.value("messages", &ids, "a list")
	op, okOp := c.arg("op")
	flag, okFlag := c.arg("flag")
	switch {
	case r != nil:
	case !given:
		r = missing("messages")
	case !okOp:
		r = missing("op")
	case !okFlag:
		r = missing("flag")
	case op != "add" && op != "remove":
		r = bad("Invalid message flag operation: '%s'", op)
	}
	if r != nil {
		c.refused(r)
		return
	}
	s.lock()
	defer s.mu.Unlock()
	s.flag(c.account, op, flag, ids)
	c.succeed(func(o *object) {
		o.json("messages", ids)
		o.raw("ignored_because_not_subscribed_channels", "[]")
	})
}

func (c *call) typing() {
	op, _ := c.arg("op")
	kind, _ := c.arg("type")
	topic, _ := c.arg("topic")
	var to []int64
	var channel int64
	_, r := c.value("to", &to, "a list")
	if r == nil {
		_, r = c.value("stream_id", &channel, "an integer")
	}
	if r == nil && op != "start" && op != "stop" {
		r = bad("Invalid op")
	}
	c.s.lock()
	var name string
	var people []string
	if r == nil && (kind == "channel" || kind == "stream") {
		if ch := c.s.channelIDs[channel]; ch != nil {
			name = ch.Name
		} else {
			r = bad("Invalid channel ID")
		}
	}
	for _, id := range to {
		if i := slices.IndexFunc(c.s.people, func(a *Account) bool { return a.ID == id }); i >= 0 {
			people = append(people, c.s.people[i].Email)
		}
	}
	c.s.mu.Unlock()
	if r != nil {
		c.refused(r)
		return
	}
	c.s.Typing(c.account.Email, op, name, topic, people...)
	c.succeed(nil)
}

// presence is POST /users/me/presence.
func (c *call) presence() {
	status, ok := c.arg("status")
	for _, name := range []string{"ping_only", "new_user_input", "slim_presence", "last_update_id",
		"history_limit_days"} {
		c.arg(name)
	}
	switch {
	case !ok:
		c.refused(missing("status"))
	case status != "active" && status != "idle":
		c.refused(bad("Invalid status: %s", status))
	default:
		c.s.Presence(c.account.Email, status)
		c.succeed(nil)
	}
}
