package tail

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/subjects"
)

const (
	// remembered is how many messages, names of channels and of people are kept, each.
	remembered = 4096
	// searchSteps bounds how often the stream is asked for one message: halving a million
	// takes twenty questions, and around the place that it finds a few more are looked at,
	// since ids do not rise strictly.
	searchSteps = 48
	searchNear  = 12
	// textKept is how many characters of a message's text are kept.
	textKept = 60
)

// searchTime is how long one of these questions may take. Tests, which are about the
// answers, give a busy machine more.
var searchTime = 2 * time.Second

// about is what is known of a message that others are about.
type about struct {
	known   bool // else the stream does not hold it
	channel string
	id      int64 // of the channel; 0 if that is not known
	topic   string
	direct  string // the people of a direct one
	sender  string
	text    string
}

// index remembers messages that went by, so that a reaction or an edit can say what it is
// about. One that is not remembered is looked up in the stream once, by halving it: the
// ids of messages rise with the sequences, but for some that are near.
type index struct {
	js     jetstream.JetStream
	stream jetstream.Stream // nil: nothing is looked up
	realm  subjects.Realm   // whose messages they are
	sought *sought          // the channel that is of interest; nil: all are

	messages bounded[int64, about]
	channels bounded[int64, string]
	people   bounded[int64, string]
	asked    int // questions to the stream, for tests
}

// sought is the one channel that is of interest: a name, and the ids that it stands for,
// as far as they are known. Those that had the name and those that have it now are the
// same to it.
type sought struct {
	name  string
	ids   map[int64]bool
	asked bounded[int64, struct{}] // the ids that the stream was asked about
}

// seek takes a channel's name, or its id, with a # before it or without: 5 is the channel
// with that id, and one that is called so.
func seek(channel string) *sought {
	if channel == "" {
		return nil
	}
	s := &sought{name: channel, ids: map[int64]bool{}}
	digits := strings.TrimPrefix(channel, "#")
	if id, err := strconv.ParseInt(digits, 10, 64); err == nil && id > 0 && strconv.FormatInt(id, 10) == digits {
		s.ids[id] = true
	}
	return s
}

func (s *sought) is(name string) bool { return strings.EqualFold(name, s.name) }

// bounded is a map that forgets its oldest entry when it is full.
type bounded[K comparable, V any] struct {
	entries map[K]V
	order   []K
	next    int
}

func (b *bounded[K, V]) put(k K, v V) {
	if b.entries == nil {
		b.entries = make(map[K]V)
	}
	if _, known := b.entries[k]; !known {
		if len(b.order) < remembered {
			b.order = append(b.order, k)
		} else {
			delete(b.entries, b.order[b.next])
			b.order[b.next] = k
			b.next = (b.next + 1) % remembered
		}
	}
	b.entries[k] = v
}

func (b *bounded[K, V]) get(k K) (V, bool) {
	v, ok := b.entries[k]
	return v, ok
}

// learn takes from an event what later ones may be about.
func (x *index) learn(body any) {
	switch b := body.(type) {
	case *events.Message:
		x.messages.put(b.ID, x.of(b))
	case *events.UpdateMessage:
		x.named(b.ChannelID, b.Channel)
		for _, id := range append([]int64{b.MessageID}, b.MessageIDs...) {
			m, ok := x.messages.get(id)
			if !ok || !m.known {
				continue
			}
			if b.Topic != nil {
				m.topic = *b.Topic
			}
			if b.NewChannelID != 0 {
				m.channel, m.id = x.channel(b.NewChannelID), b.NewChannelID
			}
			if b.Edited() && id == b.MessageID {
				m.text = Clean(*b.Content, textKept)
			}
			x.messages.put(id, m)
		}
	case *events.Reaction:
		x.person(b.User)
	case *events.RealmUser:
		x.person(b.Person)
	case *events.Stream:
		for _, c := range b.Channels {
			x.named(c.ID, c.Name)
		}
		x.named(b.ChannelID, b.Name)
		x.named(b.ChannelID, renamed(b))
	case *events.Subscription:
		for _, c := range b.Channels {
			x.named(c.ID, c.Name)
		}
	}
}

// named remembers a channel's name, if the event has it.
func (x *index) named(id int64, name string) {
	if id != 0 && name != "" {
		x.channels.put(id, name)
		if x.sought != nil && x.sought.is(name) {
			x.sought.ids[id] = true
		}
	}
}

// renamed is the name that a channel has from this event on, empty if it says of none.
func renamed(b *events.Stream) (name string) {
	if b.Property == "name" {
		_ = json.Unmarshal(b.Value, &name)
	}
	return name
}

// seeks says whether a channel, which the subject of an event names, is the one that is of
// interest. Once for each id the stream is asked for the channel's newest message and the
// newest change of it: one of them has the name that it has now.
func (x *index) seeks(ctx context.Context, id int64) bool {
	s := x.sought
	if id <= 0 || s.ids[id] {
		return id > 0
	}
	if _, asked := s.asked.get(id); asked || x.stream == nil {
		return false
	}
	s.asked.put(id, struct{}{})
	for _, typ := range []string{"message", "stream"} {
		subject, err := x.realm.By(subjects.ByPlace).Event(typ, subjects.Place(id))
		if err != nil {
			return false
		}
		ask, cancel := context.WithTimeout(ctx, searchTime)
		m, err := x.stream.GetLastMsgForSubject(ask, subject)
		cancel()
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			x.stream = nil // as in message
			return false
		}
		e, err := events.Decode(m.Subject, m.Header, m.Data)
		if err != nil || events.Resolve(ctx, x.js, e) != nil {
			continue
		}
		body, _ := e.Body()
		message, isMessage := body.(*events.Message)
		change, isChange := body.(*events.Stream)
		if isMessage && s.is(message.To.Channel) || isChange && (s.is(change.Name) || s.is(renamed(change))) {
			s.ids[id] = true
			return true
		}
	}
	return false
}

// person remembers a person's name, if the event has it.
func (x *index) person(p events.Person) {
	if p.ID != 0 && p.Name != "" {
		x.people.put(p.ID, p.Name)
	}
}

// of is what is kept of a message; the names in it are learnt.
func (x *index) of(m *events.Message) about {
	a := about{known: true, channel: m.To.Channel, id: m.ChannelID, topic: m.Topic, sender: m.Sender, text: Clean(plain(m), textKept)}
	x.person(events.Person{ID: m.SenderID, Name: m.Sender})
	for _, p := range m.To.People {
		x.person(p)
	}
	if m.Direct() {
		a.direct = others(m)
	} else {
		x.named(m.ChannelID, m.To.Channel)
	}
	return a
}

// channel is a channel's name, or its number if that is all that is known.
func (x *index) channel(id int64) string {
	if name, ok := x.channels.get(id); ok {
		return name
	}
	return strconv.FormatInt(id, 10)
}

// who is a person's name, or their number.
func (x *index) who(id int64) string {
	if name, ok := x.people.get(id); ok {
		return name
	}
	return "user " + strconv.FormatInt(id, 10)
}

// hashed are the names of channels, or their numbers, each behind a #.
func (x *index) hashed(list []events.Channel) (names []string) {
	for _, c := range list {
		names = append(names, "#"+cmp.Or(c.Name, x.channel(c.ID)))
	}
	return names
}

// all are the names of people, or their numbers, in a row.
func (x *index) all(ids []int64) string {
	var names []string
	for _, id := range ids {
		names = append(names, x.who(id))
	}
	return strings.Join(names, ", ")
}

// message is what is known of one. e is an event that is about it: the message stands
// before that, and its subject is of the same layout.
func (x *index) message(ctx context.Context, id int64, e *events.Event) about {
	if a, ok := x.messages.get(id); ok {
		return a
	}
	a := about{}
	if x.stream != nil {
		var err error
		if a, err = x.search(ctx, id, e.Seq, x.realm.By(subjects.LayoutOf(e.Subject)).Type("message")); err != nil {
			// No right to it, or no answer: others would not come either, and each would be
			// waited for.
			x.stream, a = nil, about{}
		}
	}
	x.messages.put(id, a)
	return a
}

// search finds a message in the stream, before a sequence and on the subjects of a filter.
func (x *index) search(ctx context.Context, id int64, below uint64, filter string) (about, error) {
	left := searchSteps
	// at gives the first message at a sequence or behind it, nil if there is none before
	// below.
	at := func(seq uint64) (*events.Event, error) {
		for ; left > 0; left-- {
			x.asked++
			ctx, cancel := context.WithTimeout(ctx, searchTime)
			m, err := x.stream.GetMsg(ctx, max(seq, 1), jetstream.WithGetMsgSubject(filter))
			cancel()
			if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence >= below {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			e, err := events.Decode(m.Subject, m.Header, m.Data)
			if err == nil && e.MessageID != 0 {
				e.Seq = m.Sequence
				left--
				return e, nil
			}
			seq = m.Sequence + 1 // somebody else's
		}
		return nil, nil
	}
	found := func(e *events.Event) (about, error) {
		if events.Resolve(ctx, x.js, e) != nil {
			return about{}, nil
		}
		body, err := e.Body()
		m, ok := body.(*events.Message)
		if err != nil || !ok {
			return about{}, nil
		}
		return x.of(m), nil
	}
	low, high := uint64(1), below // the message is in [low, high)
	for low < high && left > searchNear {
		middle := low + (high-low)/2
		e, err := at(middle)
		switch {
		case err != nil:
			return about{}, err
		case e == nil:
			high = middle
		case e.MessageID == id:
			return found(e)
		case e.MessageID > id:
			high = middle
		default:
			low = e.Seq + 1
		}
	}
	for seq := low - min(low, 16); left > 0; {
		e, err := at(seq)
		switch {
		case err != nil:
			return about{}, err
		case e == nil:
			return about{}, nil
		case e.MessageID == id:
			return found(e)
		}
		seq = e.Seq + 1
	}
	return about{}, nil
}
