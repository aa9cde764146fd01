package zulipsim

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Message is a message to be sent: to a channel, which is made if there is none, or to
// people.
type Message struct {
	Channel, Topic string
	To             []string // addresses of a direct message; the sender need not be among them
	Sender         string   // address; zero: DefaultSender. An account that does not exist yet becomes a human.
	Content        string   // source text, Markdown
	HTML           string   // rendered text; zero: made from Content by a small renderer
	Client         string   // name of the sending client; zero: "website"
	ID             int64    // zero: the next one; else an id that is not taken
	// SenderQueue and LocalID make the event in that one queue carry local_message_id, as
	// for a client that sent it itself.
	SenderQueue, LocalID string
}

// message is a message in the database.
type message struct {
	id      int64
	channel *Channel // nil: a direct message
	topic   string
	people  []*Account // of a direct message: everybody in it, by id
	sender  *Account
	client  string
	content string
	html    string
	sent    time.Time
	stored  time.Time // when its transaction ended, by everybody's clock
	edited  time.Time
	moved   time.Time
	deleted time.Time

	history   []string // edit_history, newest first, each a JSON object
	reactions []reaction
	subs      []string // submessages, each a JSON object
	rows      []row
	ghost     bool // deleted
}

// row is one account's copy of a message: who has one has it in "own history"
// (UserMessage in zerver/models/messages.py).
type row struct {
	account *Account
	flags   []string
}

type reaction struct {
	by          *Account
	name, code  string
	emojiFamily string
}

// flagOrder is the order in which flags are listed.
var flagOrder = []string{"read", "starred", "collapsed", "mentioned", "stream_wildcard_mentioned",
	"topic_wildcard_mentioned",
	"has_alert_word", "historical"}

func (m *message) row(a *Account) *row {
	for i := range m.rows {
		if m.rows[i].account == a {
			return &m.rows[i]
		}
	}
	return nil
}

func (r *row) set(flag string, on bool) (changed bool) {
	i := slices.Index(r.flags, flag)
	if on == (i >= 0) {
		return false
	}
	if on {
		r.flags = append(slices.Clone(r.flags), flag)
		slices.SortFunc(r.flags, func(a,
			b string) int {
			return slices.Index(flagOrder, a) - slices.Index(flagOrder, b)
		})
	} else {
		r.flags = slices.Delete(slices.Clone(r.flags), i, i+1)
	}
	return true
}

// SendMessage sends a message now: it is in history, and its event in every queue that is
// told of it, when SendMessage returns. It returns the message's id.
func (s *Server) SendMessage(m Message) int64 {
	s.lock()
	defer s.mu.Unlock()
	msg := s.compose(m)
	s.commit(msg, m)
	return msg.id
}

// SendDelayed takes an id for a message now and lets it happen when commit is called, as
// when several people write at once: ids follow insertion, events follow commit.
func (s *Server) SendDelayed(m Message) (id int64, commit func()) {
	s.lock()
	defer s.mu.Unlock()
	msg := s.compose(m)
	return msg.id, sync.OnceFunc(func() {
		s.lock()
		defer s.mu.Unlock()
		s.commit(msg, m)
	})
}

// compose makes a message with an id, and no more.
func (s *Server) compose(m Message) *message {
	email := cmp.Or(m.Sender, DefaultSender)
	known := s.accounts[lower(email)] != nil
	sender := s.account(email)
	if !known {
		sender.Type = Human
	}
	content, _ := cut(m.Content, s.MaxMessageLength, "\n[message truncated]")
	topic, _ := cut(m.Topic, maxTopicLength, "...")
	msg := &message{
		sender: sender, topic: topic, content: content, html: cmp.Or(m.HTML, render(content)),
		client: cmp.Or(m.Client, "website"), sent: s.now(), id: m.ID,
	}
	if msg.id == 0 {
		msg.id = s.nextMsg
	}
	s.nextMsg = max(s.nextMsg, msg.id+1)
	if m.Channel != "" {
		msg.channel = s.channel(m.Channel)
		return msg
	}
	msg.topic = ""
	msg.people = []*Account{sender}
	for _, to := range m.To {
		if a := s.account(to); !slices.Contains(msg.people, a) {
			msg.people = append(msg.people, a)
		}
	}
	slices.SortFunc(msg.people, func(a, b *Account) int { return int(a.ID - b.ID) })
	return msg
}

// maxTopicLength is in code points.
const maxTopicLength = 60

// cut shortens a text to n code points, the mark at its end included (truncate_content in
// zerver/lib/message.py).
func cut(s string, n int, mark string) (string, bool) {
	if utf8.RuneCountInString(s) <= n {
		return s, false
	}
	return string([]rune(s)[:n-utf8.RuneCountInString(mark)]) + mark, true
}

// commit puts a message in the database and its event in the queues.
func (s *Server) commit(m *message, how Message) {
	receivers := m.people
	if m.channel != nil {
		receivers = s.subscribers(m.channel)
		if m.channel.first == 0 || m.id < m.channel.first {
			m.channel.first = m.id
		}
	}
	for _, a := range receivers {
		if a.system {
			continue
		}
		r := row{account: a}
		if a == m.sender && slices.Contains(humanClients, lower(m.client)) {
			r.flags = []string{"read"}
		}
		if strings.Contains(m.content, "@**"+a.FullName+"**") {
			r.flags = append(r.flags, "mentioned")
		}
		m.rows = append(m.rows, r)
	}
	m.stored = time.Now()
	i, _ := slices.BinarySearchFunc(s.messages, m.id, func(m *message, id int64) int { return int(m.id - id) })
	s.messages = slices.Insert(s.messages, i, m)

	// The event is made when it is put in the queues, but of what was true when it was
	// sent.
	born := *m
	if s.down != nil {
		born.rows = slices.Clone(m.rows)
	}
	s.deliver(func() { s.tell(m, &born, how) })
}

// humanClients are the clients that people write with; what they send is read by its
// sender (Message.sent_by_human).
var humanClients = []string{"website", "zulipmobile", "zulipelectron", "zulipflutter", "ios", "android", "desktop app"}

// tell puts a message event in the queues (process_message_event): those of everybody
// with a row, and, for public channels, those that asked for all of them or that have a
// narrow.
func (s *Server) tell(m, born *message, how Message) {
	type variant struct{ markdown, gravatar, emptyTopic bool }
	made := make(map[variant]string)
	for _, q := range s.queueList {
		if q.dead != "" {
			continue
		}
		r := born.row(q.account)
		all := born.channel != nil && !born.channel.Private && (q.opts.AllPublicStreams || len(q.opts.Narrow) > 0)
		if r == nil && !all {
			continue
		}
		var flags []string
		if r != nil {
			flags = r.flags
		}
		if !q.accepts(&event{typ: "message", msg: born, flags: flags}, s.FeatureLevel) ||
			echoes(born.client, q.opts.Client) {
			continue
		}
		v := variant{q.opts.ApplyMarkdown, q.opts.ClientGravatar, q.knowsEmptyTopic()}
		body, ok := made[v]
		if !ok {
			var o object
			s.messageFields(&o, born, v.markdown, v.gravatar, v.emptyTopic, nil)
			body = o.end()
			made[v] = body
		}
		if strings.Contains(q.opts.Client, "mirror") && born.channel != nil && born.channel.Private {
			body = strings.TrimSuffix(body, "}") + `,"invite_only_stream":true}`
		}
		b := newEvent("message", "")
		b.ev.msg, b.ev.flags = m, flags
		b.raw("message", body)
		b.json("flags", append([]string{}, flags...))
		if how.LocalID != "" && how.SenderQueue == q.id {
			b.str("local_message_id", how.LocalID)
		}
		s.push(q, b.done())
	}
}

// echoes says whether a message is held back from a client that mirrors: a lower-case
// "mirror" in the sending client's name, and the same name in any case.
func echoes(sending, queue string) bool {
	return strings.Contains(sending, "mirror") && lower(sending) == lower(queue)
}

// messageFields appends a message as clients see it; flags are nil in events, where they
// stand beside it.
func (s *Server) messageFields(o *object, m *message, markdown, gravatar, emptyTopic bool, flags []string) {
	o.int("id", m.id)
	o.int("sender_id", m.sender.ID)
	content, kind := m.content, "text/x-markdown"
	if markdown {
		content, kind = m.html, "text/html"
	}
	o.str("content", content)
	o.int("recipient_id", m.recipientID())
	o.int("timestamp", m.sent.Unix())
	o.str("client", m.client)
	o.str("subject", s.shownTopic(m.topic, m.channel != nil, emptyTopic))
	o.raw("topic_links", "[]")
	if flags != nil && !m.edited.IsZero() {
		o.int("last_edit_timestamp", m.edited.Unix())
	}
	if flags != nil && len(m.history) > 0 {
		o.raw("edit_history", "["+strings.Join(m.history, ",")+"]")
	}
	o.bool("is_me_message", strings.HasPrefix(m.content, "/me "))
	if flags == nil {
		o.raw("reactions", "[]")
		o.raw("submessages", "[]")
	} else {
		list := make([]string, len(m.reactions))
		for i, r := range m.reactions {
			var ro object
			ro.str("emoji_name", r.name)
			ro.str("emoji_code", r.code)
			ro.str("reaction_type", r.emojiFamily)
			if s.FeatureLevel < 484 {
				ro.raw("user", s.reactingUser(r.by, true))
			}
			ro.int("user_id", r.by.ID)
			list[i] = ro.end()
		}
		o.raw("reactions", "["+strings.Join(list, ",")+"]")
		o.raw("submessages", "["+strings.Join(m.subs, ",")+"]")
		o.json("flags", flags)
	}
	if flags != nil && !m.moved.IsZero() && s.FeatureLevel >= 365 {
		o.int("last_moved_timestamp", m.moved.Unix())
	}
	o.str("sender_full_name", m.sender.FullName)
	o.str("sender_email", m.sender.shownEmail())
	if m.sender.system {
		o.str("sender_realm_str", "zulipinternal")
	} else {
		o.str("sender_realm_str", s.StringID)
	}
	if m.channel != nil {
		o.str("display_recipient", m.channel.Name)
		o.str("type", "stream")
		o.int("stream_id", m.channel.ID)
	} else {
		list := m.recipientList()
		o.raw("display_recipient", "["+strings.Join(list, ",")+"]")
		o.str("type", "private")
	}
	o.json("avatar_url", m.sender.avatarFor(gravatar))
	o.str("content_type", kind)
}

// recipientList is display_recipient of a direct message. Between two, Zulip adds the
// sender to the recipient afterwards, ordered by address and with other order of members;
// in groups people stand by id.
func (m *message) recipientList() []string {
	people := slices.Clone(m.people)
	pair := len(people) == 2
	if pair {
		slices.SortFunc(people, func(a, b *Account) int { return cmp.Compare(a.shownEmail(), b.shownEmail()) })
	}
	list := make([]string, len(people))
	for i, a := range people {
		var p object
		if pair && a == m.sender {
			p.str("email", a.shownEmail())
			p.str("full_name", a.FullName)
			p.int("id", a.ID)
		} else {
			p.int("id", a.ID)
			p.str("email", a.shownEmail())
			p.str("full_name", a.FullName)
		}
		p.bool("is_mirror_dummy", false)
		list[i] = p.end()
	}
	return list
}

// shownTopic is a topic as a client gets it that may or may not know of the empty one
// (level 334).
func (s *Server) shownTopic(topic string, channel, emptyTopic bool) string {
	if topic == "" && channel && (!emptyTopic || s.FeatureLevel < 334) {
		return "general chat"
	}
	return topic
}

func (m *message) recipientID() int64 {
	if m.channel != nil {
		return m.channel.recipientID()
	}
	return m.people[0].ID + 3
}

// informed returns who is told of changes to a message
// (event_recipient_ids_for_action_on_messages): everybody with a row, and who is in its
// channel now, unless the channel hides its past.
func (s *Server) informed(m *message) func(*queue) bool {
	return func(q *queue) bool {
		return m.row(q.account) != nil ||
			m.channel != nil && m.channel.historyShared() && q.account.subscribed(m.channel)
	}
}

func (s *Server) find(id int64) *message {
	i, ok := slices.BinarySearchFunc(s.messages, id, func(m *message, id int64) int { return int(m.id - id) })
	if !ok || s.messages[i].ghost {
		return nil
	}
	return s.messages[i]
}

// Edit says what to change in a message; nil leaves it.
type Edit struct {
	Content *string
	Topic   *string
	Channel *string
	// By is who edits; zero: the sender.
	By string
	// Also names other messages of the topic that move with it (propagate_mode
	// change_all).
	Also []int64
	// Notice sends a message to the new topic that tells where it came from.
	Notice bool
	// HTML is the new rendered text; zero: made from Content.
	HTML string
}

// EditMessage changes a message and tells those who are told (do_update_message in
// zerver/actions/message_edit.py). It does nothing if there is no such message.
func (s *Server) EditMessage(id int64, e Edit) {
	s.lock()
	defer s.mu.Unlock()
	if m := s.find(id); m != nil {
		s.edit(m, e)
	}
}

func (s *Server) edit(m *message, e Edit) {
	now, by, before := s.now(), m.sender, *m
	if e.By != "" {
		by = s.account(e.By)
	}
	var past object // what edit_history keeps
	past.int("user_id", by.ID)
	past.int("timestamp", now.Unix())
	if e.Content != nil {
		past.str("prev_content", m.content)
		past.str("prev_rendered_content", m.html)
		m.content, _ = cut(*e.Content, s.MaxMessageLength, "\n[message truncated]")
		m.html = cmp.Or(e.HTML, render(m.content))
		m.edited = now
	}
	ids := []int64{m.id}
	moves := m.channel != nil && (e.Topic != nil || e.Channel != nil)
	if moves {
		for _, id := range e.Also {
			if id != m.id && s.find(id) != nil {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		for _, id := range ids {
			o := s.find(id)
			if e.Topic != nil {
				o.topic, _ = cut(*e.Topic, maxTopicLength, "...")
			}
			if e.Channel != nil {
				o.channel = s.channel(*e.Channel)
			}
			o.moved = now
			if s.FeatureLevel < 365 { // from then on last_edit_timestamp is about content only
				o.edited = now
			}
		}
		if m.channel != before.channel {
			past.int("prev_stream", before.channel.ID)
			past.int("stream", m.channel.ID)
		}
		if e.Topic != nil {
			past.str("prev_topic", before.topic)
			past.str("topic", m.topic)
		}
	}
	m.history = append([]string{past.end()}, m.history...)

	next := *m // the event may be made later, after further edits
	next.rows = slices.Clone(m.rows)
	to := s.informed(m)
	s.deliver(func() {
		s.each(to, func(q *queue) *event {
			b := newEvent("update_message", "")
			b.int("user_id", by.ID)
			b.int("edit_timestamp", now.Unix())
			b.int("message_id", m.id)
			b.bool("rendering_only", false)
			if e.Content != nil {
				b.str("orig_content", before.content)
				b.str("orig_rendered_content", before.html)
				b.str("content", next.content)
				b.str("rendered_content", next.html)
				b.bool("is_me_message", strings.HasPrefix(next.content, "/me "))
			}
			if before.channel != nil {
				b.str("stream_name", before.channel.Name)
				b.int("stream_id", before.channel.ID)
			}
			if moves {
				mode := "change_one"
				if len(ids) > 1 {
					mode = "change_all"
				}
				b.str("propagate_mode", mode)
				b.str("orig_subject", s.shownTopic(before.topic, true, q.knowsEmptyTopic()))
				if next.channel != before.channel {
					b.int("new_stream_id", next.channel.ID)
				}
				if e.Topic != nil {
					b.str("subject", s.shownTopic(next.topic, true, q.knowsEmptyTopic()))
					b.raw("topic_links", "[]")
				}
			}
			b.json("message_ids", ids)
			flags := []string{"read"} // of subscribers without a row
			if r := next.row(q.account); r != nil {
				flags = append([]string{}, r.flags...)
			}
			b.json("flags", flags)
			return b.done()
		})
	})
	if moves && e.Notice {
		s.notice(m.channel, m.topic, fmt.Sprintf("This topic was moved here from #**%s>%s** by @_**%s|%d**.",
			before.channel.Name, before.topic, by.FullName, by.ID))
	}
}

// notice lets the Notification Bot say something.
func (s *Server) notice(c *Channel, topic, text string) {
	m := Message{Channel: c.Name, Topic: topic, Sender: notificationBot, Client: "Internal", Content: text}
	s.commit(s.compose(m), m)
}

// DeleteMessages deletes messages: they vanish from history, and those who are told get
// delete_message, one for all of a channel's topic (or one each for clients without
// bulk_message_deletion). Ids that do not exist are passed over.
func (s *Server) DeleteMessages(ids ...int64) {
	s.lock()
	defer s.mu.Unlock()
	s.delete(ids)
}

func (s *Server) delete(ids []int64) {
	type place struct {
		channel *Channel
		topic   string
	}
	groups := make(map[place][]*message)
	var order []place
	for _, id := range ids {
		m := s.find(id)
		if m == nil {
			continue
		}
		m.ghost, m.deleted = true, s.now()
		at := place{m.channel, lower(m.topic)}
		if groups[at] == nil {
			order = append(order, at)
		}
		groups[at] = append(groups[at], m)
	}
	for _, at := range order {
		group := groups[at]
		// Newest first, until level 393 (as seen when a topic is deleted).
		slices.SortFunc(group, func(a, b *message) int { return int(b.id - a.id) })
		if s.FeatureLevel >= 393 {
			slices.Reverse(group)
		}
		s.deliver(func() { s.tellDeleted(group) })
	}
}

// tellDeleted is process_deletion_event.
func (s *Server) tellDeleted(group []*message) {
	m := group[0]
	ids := make([]int64, len(group))
	for i, g := range group {
		ids[i] = g.id
	}
	to := s.informed(m)
	rest := func(b *builder, q *queue) {
		if m.channel != nil {
			b.int("stream_id", m.channel.ID)
			b.str("topic", s.shownTopic(m.topic, true, q.knowsEmptyTopic()))
			b.str("message_type", "stream")
		} else {
			b.str("message_type", "private")
		}
	}
	for _, q := range s.queueList {
		if q.dead != "" || !to(q) || !q.accepts(&event{typ: "delete_message"}, s.FeatureLevel) {
			continue
		}
		if q.opts.Capabilities["bulk_message_deletion"] {
			b := newEvent("delete_message", "")
			b.json("message_ids", ids)
			rest(b, q)
			s.push(q, b.done())
			continue
		}
		for _, id := range ids {
			b := newEvent("delete_message", "")
			rest(b, q)
			b.int("message_id", id)
			s.push(q, b.done())
		}
	}
}

// React adds a reaction to a message; Unreact takes it away. Emoji are named as Zulip
// names them ("tada"). A reaction that is there already, or is not, changes nothing.
func (s *Server) React(id int64, email, emoji string) { s.lockedReact(id, email, emoji, "add") }

// Unreact takes a reaction away.
func (s *Server) Unreact(id int64, email, emoji string) { s.lockedReact(id, email, emoji, "remove") }

func (s *Server) lockedReact(id int64, email, emoji, op string) {
	s.lock()
	defer s.mu.Unlock()
	if m := s.find(id); m != nil {
		s.react(m, s.account(email), emoji, op)
	}
}

func (s *Server) react(m *message, by *Account, emoji, op string) bool {
	i := slices.IndexFunc(m.reactions, func(r reaction) bool { return r.by == by && r.name == emoji })
	if (op == "add") == (i >= 0) {
		return false
	}
	r := reaction{by, emoji, emojiCode(emoji), "unicode_emoji"}
	if op == "add" {
		m.reactions = append(m.reactions, r)
	} else {
		m.reactions = slices.Delete(slices.Clone(m.reactions), i, i+1)
	}
	b := newEvent("reaction", op)
	b.int("user_id", by.ID)
	if s.FeatureLevel < 484 {
		b.raw("user", s.reactingUser(by, false))
	}
	b.int("message_id", m.id)
	b.str("emoji_name", r.name)
	b.str("emoji_code", r.code)
	b.str("reaction_type", r.emojiFamily)
	ev, to := b.done(), s.informed(m)
	s.deliver(func() { s.emit(ev, to) })
	return true
}

// reactingUser is the deprecated description of who reacted; events and messages call the
// id differently.
func (s *Server) reactingUser(a *Account, inMessage bool) string {
	var o object
	if inMessage {
		o.int("id", a.ID)
	} else {
		o.int("user_id", a.ID)
	}
	o.str("email", a.shownEmail())
	o.str("full_name", a.FullName)
	return o.end()
}

// Flag adds (op "add") or removes (op "remove") a flag such as "read" or "starred" of
// messages for one account, whose queues are told of it (do_update_message_flags).
// Starring a message without a row makes one, as Zulip does.
func (s *Server) Flag(email, op, flag string, ids ...int64) {
	s.lock()
	defer s.mu.Unlock()
	s.flag(s.account(email), op, flag, ids)
}

// flag returns the messages it was told to change and that exist for the account.
func (s *Server) flag(a *Account, op, flag string, ids []int64) []int64 {
	changed := []int64{}
	for _, id := range ids {
		m := s.find(id)
		if m == nil || !s.readable(a, m) {
			continue
		}
		r := m.row(a)
		if r == nil {
			if flag != "starred" {
				continue
			}
			m.rows = append(slices.Clone(m.rows), row{account: a, flags: []string{"read", "historical"}})
			r = m.row(a)
		}
		if r.set(flag, op == "add") {
			changed = append(changed, id)
		}
	}
	if len(changed) == 0 {
		return changed
	}
	b := newEvent("update_message_flags", op)
	b.str("operation", op)
	b.str("flag", flag)
	if kind := mergeKind(op, flag); kind != "" {
		ev := b.merging(kind, changed)
		s.deliver(func() { s.emit(ev, only(a)) })
		return changed
	}
	b.json("messages", changed)
	b.bool("all", false)
	s.deliver(func() {
		s.each(only(a), func(q *queue) *event {
			ev := &builder{object: object{slices.Clone(b.b)}, ev: b.ev}
			if flag == "read" {
				var details object
				for _, id := range changed {
					if m := s.find(id); m != nil {
						details.raw(strconv.FormatInt(id, 10), s.unreadDetails(a, m, q.knowsEmptyTopic()))
					}
				}
				ev.raw("message_details", details.end())
			}
			return ev.done()
		})
	})
	return changed
}

// unreadDetails describes a message that becomes unread, so that clients can count it
// without fetching it.
func (s *Server) unreadDetails(a *Account, m *message, emptyTopic bool) string {
	var o object
	if m.channel == nil {
		o.str("type", "private")
	} else {
		o.str("type", "stream")
	}
	if r := m.row(a); r != nil && slices.Contains(r.flags, "mentioned") {
		o.bool("mentioned", true)
	}
	if m.channel != nil {
		o.int("stream_id", m.channel.ID)
		o.str("topic", s.shownTopic(m.topic, true, emptyTopic))
		o.bool("unmuted_stream_msg", true)
		return o.end()
	}
	ids := []int64{}
	for _, p := range m.people {
		if p != a || len(m.people) == 1 {
			ids = append(ids, p.ID)
		}
	}
	o.json("user_ids", ids)
	return o.end()
}

// Typing tells that somebody starts (op "start") or stops (op "stop") typing: in a
// channel's topic, which only clients hear of that declared stream_typing_notifications,
// or, with an empty channel, to the people with the addresses to.
func (s *Server) Typing(email, op, channel, topic string, to ...string) {
	s.lock()
	defer s.mu.Unlock()
	by := s.account(email)
	var sender object
	sender.int("user_id", by.ID)
	sender.str("email", by.shownEmail())
	begin := func(kind string) *builder {
		b := &builder{ev: event{typ: "typing", op: op}}
		b.str("type", "typing")
		b.str("message_type", kind)
		b.str("op", op)
		b.raw("sender", sender.end())
		return b
	}
	if channel != "" {
		c := s.channel(channel)
		s.deliver(func() {
			s.each(func(q *queue) bool { return q.account.subscribed(c) }, func(q *queue) *event {
				b := begin("stream")
				b.ev.channel = true
				b.int("stream_id", c.ID)
				b.str("topic", s.shownTopic(topic, true, q.knowsEmptyTopic()))
				return b.done()
			})
		})
		return
	}
	people := []*Account{}
	for _, e := range append(slices.Clone(to), email) {
		if a := s.account(e); !slices.Contains(people, a) {
			people = append(people, a)
		}
	}
	list := make([]string, len(people))
	for i, a := range people {
		var o object
		o.int("user_id", a.ID)
		o.str("email", a.shownEmail())
		list[i] = o.end()
	}
	b := begin("direct")
	b.raw("recipients", "["+strings.Join(list, ",")+"]")
	ev := b.done()
	s.deliver(func() { s.emit(ev, func(q *queue) bool { return slices.Contains(people, q.account) }) })
}

// Presence tells that somebody is at the keyboard ("active") or has been away from it for
// a while ("idle").
func (s *Server) Presence(email, status string) {
	s.lock()
	defer s.mu.Unlock()
	s.presence(s.account(email), status)
}

// presence is process_presence_event: clients with slim_presence get no address, those
// with simplified_presence_events (level 419) the newest of three shapes.
func (s *Server) presence(a *Account, status string) {
	now := s.now()
	var site, where object
	site.str("client", "website")
	site.str("status", status)
	site.int("timestamp", now.Unix())
	site.bool("pushable", false)
	where.raw("website", site.end())
	s.deliver(func() {
		s.each(everyone, func(q *queue) *event {
			b := newEvent("presence", "")
			if q.opts.Capabilities["simplified_presence_events"] {
				var at, people object
				at.int("active_timestamp", now.Unix())
				at.int("idle_timestamp", now.Unix())
				people.raw(strconv.FormatInt(a.ID, 10), at.end())
				b.raw("presences", people.end())
				return b.done()
			}
			b.int("user_id", a.ID)
			if !q.opts.SlimPresence {
				b.str("email", a.shownEmail())
			}
			b.raw("server_timestamp", fmt.Sprintf("%.6f", float64(now.UnixMicro())/1e6))
			b.raw("presence", where.end())
			return b.done()
		})
	})
}

// Redeliver puts a message's event in the queues a second time, under new ids, as Zulip
// itself does when the handling of an event failed half-way and is tried again.
func (s *Server) Redeliver(id int64) {
	s.lock()
	defer s.mu.Unlock()
	if m := s.find(id); m != nil {
		s.deliver(func() { s.tell(m, m, Message{}) })
	}
}

// LinkPreview gives a message new rendered text, as Zulip does when it has fetched what a
// link in it shows: an update_message event with rendering_only, without a user.
func (s *Server) LinkPreview(id int64, html string) {
	s.lock()
	defer s.mu.Unlock()
	m := s.find(id)
	if m == nil {
		return
	}
	m.html = html
	b := newEvent("update_message", "")
	b.raw("user_id", "null")
	b.int("edit_timestamp", s.now().Unix())
	b.int("message_id", m.id)
	b.json("message_ids", []int64{m.id})
	b.str("content", m.content)
	b.str("rendered_content", m.html)
	b.bool("rendering_only", true)
	b.raw("flags", "[]")
	ev, to := b.done(), s.informed(m)
	s.deliver(func() { s.emit(ev, to) })
}

// StoredMessage is a message as the database has it.
type StoredMessage struct {
	ID             int64
	Channel, Topic string
	ChannelID      int64    // 0 for a direct message
	To             []string // addresses of everybody in a direct message
	Sender         string
	Content        string
	Time           time.Time // when it was sent, by the server's clock
	Committed      time.Time // when it could be seen first, by everybody's clock
	Edited, Moved  time.Time
	Deleted        time.Time // zero: it is there
}

// Messages returns Zulip's own truth: every message that was ever committed, deleted ones
// too, by id.
func (s *Server) Messages() []StoredMessage {
	s.lock()
	defer s.mu.Unlock()
	list := make([]StoredMessage, len(s.messages))
	for i, m := range s.messages {
		sm := StoredMessage{ID: m.id, Topic: m.topic, Sender: m.sender.Email, Content: m.content, Time: m.sent,
			Committed: m.stored, Edited: m.edited,
			Moved: m.moved, Deleted: m.deleted}
		if m.channel != nil {
			sm.Channel, sm.ChannelID = m.channel.Name, m.channel.ID
		}
		for _, a := range m.people {
			sm.To = append(sm.To, a.Email)
		}
		list[i] = sm
	}
	return list
}
