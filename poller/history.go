package poller

import (
	"context"
	"errors"
	"net/url"
	"strconv"
)

// HistoryQuery says which messages are to be read back.
type HistoryQuery struct {
	Anchor         int64       // id of the message to begin at
	Newest         bool        // begin at the newest message instead
	Before, After  int         // how many of each side of the anchor; together at most 5000, better 1000
	ExcludeAnchor  bool        // leave the anchor's own message out; not with both Before and After
	PublicChannels bool        // all of them and nothing else; else the account's own history
	Narrow         [][2]string // operator and operand, as in Options; with PublicChannels, only what is in both
	// Each is called for every message, oldest first. Its error ends the reading and is
	// returned as it is.
	Each func(*Message) error
}

// mostMessages is the largest page that Zulip gives.
const mostMessages = 5000

// Message is a message of the history in the shape of a live event.
type Message struct {
	ID        int64
	Timestamp int64 // when it was sent, UNIX seconds; 0: not said
	// LastChange is when it was last edited or moved, UNIX seconds; 0: never. From
	// feature level 365 on a move is in last_moved_timestamp alone, before that in
	// last_edit_timestamp too.
	LastChange int64
	// Recipient and ChannelID are those of the live event.
	Recipient Recipient
	ChannelID int64
	// Raw is {"type":"message","message":{...},"flags":[...]}, all of it as Zulip sent it
	// but for the place of flags. It is valid until Each returns.
	Raw   []byte
	Fault string // why this is no message that can be carried; Raw is then what came in its place
}

// HistoryPage tells of a page that was read whole.
type HistoryPage struct {
	Count          int   // messages given to Each
	First, Last    int64 // smallest and largest id of them, 0 if there were none
	FoundNewest    bool  // there is nothing newer
	HistoryLimited bool  // the organization's plan hides what is older
}

var errQuery = errors.New("poller: a history query asks for more than one thing can give")

// Messages reads a page of history, retrying like Next; after a page that was cut short
// it asks again, and Each sees no message twice. It needs the space of one message.
// Errors are those of Next and of Each. A *RefusedError means that the query is at fault,
// an unknown channel in the narrow say.
//
// A page costs one request of the account's other budget (not that of polls), which is a
// sliding minute: few large pages are better than many small ones.
func (p *Poller) Messages(ctx context.Context, q HistoryQuery) (*HistoryPage, error) {
	if q.Before < 0 || q.After < 0 || q.Before+q.After > mostMessages ||
		q.ExcludeAnchor && q.Before > 0 && q.After > 0 {
		return nil, errQuery
	}
	query := q.parameters(p.Options)
	page := new(HistoryPage)
	var shape liveShape
	each := func(raw []byte, s *scanner, fault string) error {
		m := Message{Raw: raw, Fault: fault}
		if fault == "" {
			m = shape.message(raw, s)
		}
		if m.Fault == "" {
			if page.Count > 0 && m.ID <= page.Last {
				return nil // of the page that was cut short
			}
			if page.Count == 0 {
				page.First = m.ID
			}
			page.Last = m.ID
			page.Count++
		}
		return q.Each(&m)
	}
	err := p.retry(ctx, &p.rest, func() error {
		a, err := p.Client.open(ctx, "messages", query, answerTimeout)
		if err != nil {
			return err
		}
		defer a.Close()
		a.list = list{key: "messages", each: each}
		for !a.done {
			if _, err := a.Next(ctx); err != nil {
				return err
			}
		}
		page.FoundNewest = a.fields["found_newest"] == "true"
		page.HistoryLimited = a.fields["history_limited"] == "true"
		return nil
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// parameters are the query of GET /api/v1/messages.
func (q *HistoryQuery) parameters(o Options) url.Values {
	v := o.messages()
	v.Set("anchor", strconv.FormatInt(q.Anchor, 10))
	if q.Newest {
		v.Set("anchor", "newest")
	}
	v.Set("num_before", strconv.Itoa(q.Before))
	v.Set("num_after", strconv.Itoa(q.After))
	if q.ExcludeAnchor {
		v.Set("include_anchor", "false")
	}
	type term struct {
		Operator string `json:"operator"`
		Operand  string `json:"operand"`
	}
	var narrow []term
	if q.PublicChannels {
		narrow = append(narrow, term{"channels", "public"}) // level 250 on; "streams" before
	}
	for _, n := range q.Narrow {
		narrow = append(narrow, term{n[0], n[1]})
	}
	if narrow != nil {
		v.Set("narrow", jsonText(narrow))
	}
	return v
}

// liveShape turns messages of the history into the shape of live events.
type liveShape struct {
	out  []byte
	scan scanner
}

// message does so with one, whose bytes s has scanned. In history the flags stand inside
// the message, in an event beside it.
func (l *liveShape) message(raw []byte, s *scanner) Message {
	switch {
	case !s.isObject:
		return Message{Raw: raw, Fault: "no object"}
	case s.idState != idGood:
		return Message{Raw: raw, Fault: "its id is missing or no whole number from 0 to 9223372036854775807"}
	}
	m := Message{ID: s.id}
	m.Recipient, m.ChannelID = placed{recipientOf([]byte(s.typ)), s.top.channel}.said()
	flags := []byte("[]")
	l.out = append(l.out[:0], `{"type":"message","message":{`...)
	kept := 0 // members written
	for key, part := range l.members(raw) {
		switch key {
		case "flags":
			flags = part.value
			continue
		case "timestamp":
			m.Timestamp, _ = strconv.ParseInt(string(part.value), 10, 64)
		case "last_edit_timestamp", "last_moved_timestamp":
			at, _ := strconv.ParseInt(string(part.value), 10, 64)
			m.LastChange = max(m.LastChange, at)
		}
		if kept++; kept > 1 {
			l.out = append(l.out, ',')
		}
		l.out = append(l.out, part.whole...)
	}
	l.out = append(l.out, `},"flags":`...)
	l.out = append(l.out, flags...)
	l.out = append(l.out, '}')
	m.Raw = l.out
	return m
}

// part is a member of an object.
type part struct {
	whole []byte // from the key to the end of the value, with the blanks around
	value []byte
}

// members yields the members of an object that is known to be well-formed.
func (l *liveShape) members(raw []byte) func(func(string, part) bool) {
	return func(yield func(string, part) bool) {
		i := 0
		for raw[i] != '{' {
			i++
		}
		i++
		var w interned
		for {
			begin := i
			for isSpace(raw[i]) {
				i++
			}
			if raw[i] == '}' {
				return // no members at all
			}
			l.scan = scanner{rootText: true, words: &w, kinds: l.scan.kinds, text: l.scan.text[:0]}
			n, _ := l.scan.scan(raw[i:])
			key := l.scan.root
			i += n
			for raw[i] != ':' {
				i++
			}
			for i++; isSpace(raw[i]); i++ {
			}
			l.scan = scanner{words: &w, kinds: l.scan.kinds, text: l.scan.text[:0]}
			n, _ = l.scan.scan(raw[i:])
			value := raw[i : i+n]
			for i += n; isSpace(raw[i]); i++ {
			}
			if !yield(key, part{raw[begin:i], value}) || raw[i] == '}' {
				return
			}
			i++ // the comma
		}
	}
}
