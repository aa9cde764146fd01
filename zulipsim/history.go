package zulipsim

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// largest is where "newest" anchors: above every message (LARGER_THAN_MAX_MESSAGE_ID in
// zerver/lib/narrow.py).
const largest = 10_000_000_000_000_000

// term is one condition of a narrow of GET /messages.
type term struct {
	operator string
	operand  any
	negated  bool
}

// badNarrow is how GET /messages refuses a narrow.
func badNarrow(desc string) *refusal {
	return &refusal{"BAD_NARROW", "Invalid narrow operator: " + desc, func(o *object) { o.str("desc", desc) }}
}

// readable says whether the account may see a message at all: it has a row, or the
// message is in a channel whose past is open to it.
func (s *Server) readable(a *Account, m *message) bool {
	return m.row(a) != nil || m.channel != nil && s.openHistory(a, m.channel)
}

// openHistory says whether the account can read all of a channel, what was before it was
// subscribed included.
func (s *Server) openHistory(a *Account, c *Channel) bool {
	switch {
	case !c.Private:
		return !a.Guest || a.subscribed(c)
	default:
		return c.HistoryPublic && a.subscribed(c)
	}
}

// getMessages is GET /messages (zerver/views/message_fetch.py, zerver/lib/narrow.py).
func (c *call) getMessages() {
	s := c.s
	anchorText, anchored := c.arg("anchor")
	var before, after int64
	includeAnchor, markdown, gravatar, emptyTopic := true, true, true, false
	var ids []int64
	byID := false
	steps := []func() (bool, *refusal){
		func() (bool, *refusal) { return c.value("include_anchor", &includeAnchor, "a boolean") },
		func() (bool, *refusal) { return c.value("num_before", &before, "an integer") },
		func() (bool, *refusal) { return c.value("num_after", &after, "an integer") },
		func() (bool, *refusal) { return c.value("client_gravatar", &gravatar, "a boolean") },
		func() (bool, *refusal) { return c.value("apply_markdown", &markdown, "a boolean") },
		func() (bool, *refusal) {
			if c.level < 334 {
				return false, nil
			}
			return c.value("allow_empty_topic_name", &emptyTopic, "a boolean")
		},
		func() (bool, *refusal) {
			if c.level < 300 {
				return false, nil
			}
			given, r := c.value("message_ids", &ids, "a list")
			byID = given
			return given, r
		},
	}
	for _, step := range steps {
		if _, r := step(); r != nil {
			c.refused(r)
			return
		}
	}
	s.lock()
	defer s.mu.Unlock()
	narrow, r := c.historyNarrow()
	switch {
	case r != nil:
	case before < 0 || after < 0:
		r = bad("num_before and num_after must not be negative")
	case byID && anchored:
		r = bad("Unsupported parameter combination: anchor, message_ids")
	case !byID && before+after > 5000:
		r = bad("Too many messages requested (maximum 5000).")
	case !byID && !includeAnchor && before > 0 && after > 0:
		r = bad("The anchor can only be excluded at an end of the range")
	}
	if r != nil {
		c.refused(r)
		return
	}
	a := c.account
	visible := s.selection(a, narrow)
	write := func(o *object, found []*message) {
		list := make([]string, len(found))
		for i, m := range found {
			var mo object
			flags := []string{"read", "historical"}
			if row := m.row(a); row != nil {
				flags = append([]string{}, row.flags...)
			}
			s.messageFields(&mo, m, markdown, gravatar, emptyTopic, flags)
			list[i] = mo.end()
		}
		o.raw("messages", "["+strings.Join(list, ",")+"]")
	}
	if byID {
		var found []*message
		for _, id := range ids {
			if m := s.find(id); m != nil && visible(m) && !slices.Contains(found, m) {
				found = append(found, m)
			}
		}
		slices.SortFunc(found, func(a, b *message) int { return int(a.id - b.id) })
		c.succeed(func(o *object) {
			write(o, found)
			o.bool("history_limited", false)
			o.bool("found_anchor", false)
			o.bool("found_oldest", false)
			o.bool("found_newest", false)
		})
		return
	}
	anchor, r := s.anchor(a, anchorText, anchored, visible)
	if r != nil {
		c.refused(r)
		return
	}
	found, foundAnchor, oldest, newest := s.page(visible, anchor, int(before), int(after), includeAnchor)
	c.succeed(func(o *object) {
		write(o, found)
		o.bool("found_anchor", foundAnchor)
		o.bool("found_oldest", oldest)
		o.bool("found_newest", newest)
		o.bool("history_limited", false)
		o.int("anchor", anchor)
	})
}

// anchor reads the anchor: an id, or a word.
func (s *Server) anchor(a *Account, text string, given bool, visible func(*message) bool) (int64, *refusal) {
	switch {
	case !given:
		return 0, bad("Missing 'anchor' argument.")
	case text == "newest":
		return largest, nil
	case text == "oldest":
		return 0, nil
	case text == "first_unread":
		for _, m := range s.messages {
			if r := m.row(a); r != nil && !m.ghost && visible(m) && !slices.Contains(r.flags, "read") {
				return m.id, nil
			}
		}
		return largest, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, bad("Invalid anchor")
	}
	return min(max(n, 0), largest), nil
}

// page picks the messages around an anchor (limit_query_to_range,
// post_process_limited_query). An end that was asked for counts as found if fewer
// messages came than would have been allowed; asking from the very end counts as finding
// it.
func (s *Server) page(visible func(*message) bool, anchor int64, before, after int, include bool) (
	found []*message, foundAnchor, oldest, newest bool,
) {
	leftmost, rightmost := anchor == 0, anchor >= largest
	if leftmost {
		before = 0
	}
	if rightmost {
		after = 0
	}
	at := sort.Search(len(s.messages), func(i int) bool { return s.messages[i].id >= anchor })
	for i := at - 1; i >= 0 && len(found) < before; i-- {
		if m := s.messages[i]; !m.ghost && visible(m) {
			found = append(found, m)
		}
	}
	slices.Reverse(found)
	oldest = leftmost || len(found) < before
	i := at
	if i < len(s.messages) && s.messages[i].id == anchor {
		if m := s.messages[i]; (include || before == 0 && after == 0) && !m.ghost && visible(m) {
			found, foundAnchor = append(found, m), true
		}
		i++
	}
	n := 0
	for ; i < len(s.messages) && n < after; i++ {
		if m := s.messages[i]; !m.ghost && visible(m) {
			found = append(found, m)
			n++
		}
	}
	newest = rightmost || n < after
	return found, foundAnchor, oldest, newest
}

// historyNarrow reads the narrow of GET /messages: objects, or pairs as old clients send
// them.
func (c *call) historyNarrow() ([]term, *refusal) {
	var list []any
	given, r := c.value("narrow", &list, "a list")
	if r != nil || !given {
		return nil, r
	}
	terms := make([]term, len(list))
	for i, v := range list {
		switch v := v.(type) {
		case map[string]any:
			op, ok := v["operator"].(string)
			if !ok {
				return nil, bad("narrow[%d] is not a valid term", i)
			}
			neg, _ := v["negated"].(bool)
			terms[i] = term{op, v["operand"], neg}
		case []any:
			op, ok := "", false
			if len(v) == 2 {
				op, ok = v[0].(string)
			}
			if !ok {
				return nil, bad("narrow[%d] is not a valid term", i)
			}
			terms[i] = term{op, v[1], false}
		default:
			return nil, bad("narrow[%d] is not a valid term", i)
		}
	}
	for i, t := range terms {
		switch t.operator {
		case "stream", "channel":
			ch := c.s.channelOperand(t.operand)
			if ch == nil {
				return nil, badNarrow(fmt.Sprintf("unknown channel %v", text(t.operand)))
			}
			terms[i] = term{"channel", ch, t.negated}
		case "streams", "channels":
			if t.operand != "public" {
				return nil, badNarrow(fmt.Sprintf("unknown channels operand %v", text(t.operand)))
			}
			terms[i].operator = "channels"
		case "sender", "dm", "pm-with", "group-pm-with", "dm-including":
			who, ok := c.s.peopleOperand(t.operand)
			if !ok {
				return nil, badNarrow(fmt.Sprintf("unknown user %v", text(t.operand)))
			}
			terms[i].operand = who
		case "topic", "id", "near", "with", "search":
		case "is":
			word, _ := t.operand.(string)
			if !slices.Contains([]string{"dm", "private", "starred", "unread", "alerted", "mentioned",
				"resolved"}, word) {
				return nil, badNarrow(fmt.Sprintf("unknown 'is' operand %s", word))
			}
		default:
			return nil, badNarrow("unknown operator " + t.operator)
		}
	}
	return terms, nil
}

// text writes an operand as Python would.
func text(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

func (s *Server) channelOperand(v any) *Channel {
	switch v := v.(type) {
	case float64:
		return s.channelIDs[int64(v)]
	case string:
		if c := s.channels[lower(v)]; c != nil {
			return c
		}
		id, err := strconv.ParseInt(v, 10, 64)
		if err == nil {
			return s.channelIDs[id]
		}
	}
	return nil
}

func (s *Server) peopleOperand(v any) ([]*Account, bool) {
	var names []string
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			names = append(names, text(one))
		}
	default:
		names = strings.Split(text(v), ",")
	}
	var list []*Account
	for _, n := range names {
		i := slices.IndexFunc(s.people, func(a *Account) bool {
			return strconv.FormatInt(a.ID, 10) == n || lower(a.Email) == lower(n) || a.shownEmail() == lower(n)
		})
		if i < 0 {
			return nil, false
		}
		list = append(list, s.people[i])
	}
	return list, true
}

// selection says which messages a narrow selects for the account. Without a condition
// that names public channels, or one channel whose past is open, only the account's own
// history is searched: that is why the all-public narrow has no direct messages, and why
// nothing from before a subscription is found without a channel's name.
func (s *Server) selection(a *Account, narrow []term) func(*message) bool {
	history := false
	for _, t := range narrow {
		switch {
		case t.negated:
		case t.operator == "channels":
			history = true
		case t.operator == "channel":
			history = s.openHistory(a, t.operand.(*Channel))
		}
	}
	return func(m *message) bool {
		if m.row(a) == nil && !(history && s.readable(a, m)) {
			return false
		}
		for _, t := range narrow {
			if s.meets(a, m, t) == t.negated {
				return false
			}
		}
		return true
	}
}

// meets says whether a message meets one condition of a narrow, its negation aside.
func (s *Server) meets(a *Account, m *message, t term) bool {
	has := func(flag string) bool {
		r := m.row(a)
		if r == nil {
			return flag == "read" || flag == "historical"
		}
		return slices.Contains(r.flags, flag)
	}
	switch t.operator {
	case "channel":
		return m.channel == t.operand.(*Channel)
	case "channels":
		return m.channel != nil && !m.channel.Private
	case "topic":
		return m.channel != nil && lower(m.topic) == lower(text(t.operand))
	case "sender":
		return slices.Contains(t.operand.([]*Account), m.sender)
	case "dm", "pm-with":
		if m.channel != nil {
			return false
		}
		with := append([]*Account{a}, t.operand.([]*Account)...)
		return !slices.ContainsFunc(m.people, func(p *Account) bool { return !slices.Contains(with, p) }) &&
			!slices.ContainsFunc(with, func(p *Account) bool { return !slices.Contains(m.people, p) })
	case "dm-including", "group-pm-with":
		in := func(p *Account) bool { return slices.Contains(m.people, p) }
		return m.channel == nil && slices.ContainsFunc(t.operand.([]*Account), in)
	case "id":
		return text(t.operand) == strconv.FormatInt(m.id, 10)
	case "search":
		return strings.Contains(lower(m.content), lower(text(t.operand)))
	case "is":
		switch t.operand {
		case "dm", "private":
			return m.channel == nil
		case "starred":
			return has("starred")
		case "unread":
			return !has("read")
		case "alerted", "mentioned":
			return has("mentioned")
		case "resolved":
			return m.channel != nil && strings.HasPrefix(m.topic, "✔ ")
		}
	}
	return true // near and with choose where to look, not what
}

// getMessage is GET /messages/{id}.
func (c *call) getMessage() {
	s := c.s
	markdown, emptyTopic := true, false
	_, r := c.value("apply_markdown", &markdown, "a boolean")
	if r == nil {
		_, r = c.value("allow_empty_topic_name", &emptyTopic, "a boolean")
	}
	s.lock()
	defer s.mu.Unlock()
	var m *message
	if r == nil {
		m, r = c.own()
	}
	if r != nil {
		c.refused(r)
		return
	}
	flags := []string{"read", "historical"}
	if row := m.row(c.account); row != nil {
		flags = append([]string{}, row.flags...)
	}
	c.succeed(func(o *object) {
		var mo object
		s.messageFields(&mo, m, markdown, false, emptyTopic, flags)
		o.raw("message", mo.end())
		o.str("raw_content", m.content)
	})
}
