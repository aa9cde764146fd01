package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/nats-io/nats.go/jetstream"
)

// World is what is known of an organization: who is who, which channels there are, and
// where the messages are that it has seen. It is fed the messages of a realm's stream in
// their order, by [World.Apply]: events alone, or, where the bridge runs with --state, a
// state and the events behind it, which [LoadWorld] begins with. Then it knows of people
// and channels what Zulip's own clients know.
//
// It is for one goroutine.
type World struct {
	// Messages is of how many messages the place is kept, those first seen going first. 0:
	// 100,000.
	Messages int

	people   map[int64]User
	channels map[int64]ChannelState
	places   map[int64]Place
	order    []int64 // of places, as they were first seen; what was deleted may still be here

	ready map[string]bool // sections that are known whole
	// The state that counts: events of that queue up to that one are in it.
	queue string
	upTo  int64
	part  *statePart // the state that is being read
}

// User is a person or bot.
type User struct {
	ID     int64
	Name   string
	Email  string // as others see it, which may be a made-up one
	Bot    bool
	Active bool // not deactivated
}

// ChannelState is a channel.
type ChannelState struct {
	ID   int64
	Name string // the last that is known
	// Live is false for one that was archived, or that the account does not see any more:
	// before feature level 378 Zulip tells of both in the same words.
	Live bool
}

// Place is where a message is now: in a topic of a channel, or, where ChannelID is 0,
// among people.
type Place struct {
	ChannelID int64
	Topic     string // may be empty in a channel too: Zulip's "general chat"
}

const defaultMessages = 100_000

// NewWorld is a World in which nothing is known.
func NewWorld() *World {
	return &World{people: map[int64]User{}, channels: map[int64]ChannelState{}, places: map[int64]Place{},
		ready: map[string]bool{}}
}

// Ready says whether a section of the state ("users", "channels", "subscriptions") was
// read whole, and no gap came since. Else what is known is right as far as it goes, and
// somebody or something may be missing, or be named as before.
func (w *World) Ready(section string) bool { return w.ready[section] }

// User is who has that id.
func (w *World) User(id int64) (User, bool) { u, ok := w.people[id]; return u, ok }

// Channel is the channel with that id, live or not.
func (w *World) Channel(id int64) (ChannelState, bool) { c, ok := w.channels[id]; return c, ok }

// Place is where the message with that id is now. Of a message that was not seen, or too
// long ago, nothing is known; nor of any behind a gap, in which it may have been moved.
func (w *World) Place(message int64) (Place, bool) { p, ok := w.places[message]; return p, ok }

// Users and Channels are all that are known, by id. They are copies.
func (w *World) Users() map[int64]User            { return maps.Clone(w.people) }
func (w *World) Channels() map[int64]ChannelState { return maps.Clone(w.channels) }

// Apply takes in the next message of the stream: an event, one from history, or a record.
// What says nothing of people, channels or places changes nothing. An error is about that
// message only: its body cannot be read, or is in the object store ([ErrStub]; see
// [Reader]).
func (w *World) Apply(e *Event) error {
	if e.Record == "" {
		return w.event(e)
	}
	switch e.Record {
	case RecordGapOpened:
		// Nobody knows what was renamed or moved from here on.
		clear(w.ready)
		clear(w.places)
		w.order, w.part = w.order[:0], nil
		return nil
	case RecordStateBegin, RecordState, RecordStateEnd:
	default:
		return nil
	}
	body, err := e.Body()
	if err != nil {
		w.part = nil
		return err
	}
	switch b := body.(type) {
	case *StateBegin:
		w.part = &statePart{queue: b.QueueID, seen: map[string]int{}, world: NewWorld()}
	case *StatePiece:
		if w.part == nil || w.part.queue != b.QueueID {
			return nil // it began before we did
		}
		if w.part.seen[b.Section]++; w.part.seen[b.Section] != b.Piece {
			w.part = nil // the stream's limits took one, or it was purged: there is a newer state
			return nil
		}
		if err := w.part.take(b); err != nil {
			w.part = nil
			return e.unreadable(err)
		}
	case *StateEnd:
		part := w.part
		w.part = nil
		maps.DeleteFunc(b.Pieces, func(_ string, n int) bool { return n == 0 }) // the server does not know it
		if part != nil && part.queue == b.QueueID && maps.Equal(part.seen, b.Pieces) {
			w.become(part, b)
		}
	}
	return nil
}

// statePart is a state of which pieces have come.
type statePart struct {
	queue string
	seen  map[string]int // pieces, by section
	world *World
}

func (s *statePart) take(p *StatePiece) error {
	switch p.Member {
	case "realm_users", "realm_non_active_users", "cross_realm_bots":
		var people []person
		if err := json.Unmarshal(p.Elements, &people); err != nil {
			return err
		}
		for i := range people {
			u := people[i].apply(User{Active: p.Member != "realm_non_active_users"})
			s.world.people[u.ID] = u
		}
	case "streams", "subscriptions", "unsubscribed", "never_subscribed":
		var channels []Channel
		if err := json.Unmarshal(p.Elements, &channels); err != nil {
			return err
		}
		s.world.learn(channels)
	}
	return nil
}

// become takes over a state that is whole. Where a section is not in it, what was known
// stays.
func (w *World) become(part *statePart, end *StateEnd) {
	w.queue, w.upTo = end.QueueID, end.EventID
	clear(w.ready)
	for section := range end.Pieces {
		w.ready[section] = true
	}
	if w.ready["users"] {
		w.people = part.world.people
	}
	if w.ready["channels"] || w.ready["subscriptions"] {
		w.channels = part.world.channels
	}
}

// person is somebody as the state and realm_user events have them; in an update, only
// what was changed is there.
type person struct {
	ID       int64   `json:"user_id"`
	Name     *string `json:"full_name"`
	Email    *string `json:"email"`
	NewEmail *string `json:"new_email"`
	Bot      *bool   `json:"is_bot"`
	Active   *bool   `json:"is_active"`
}

func (p *person) apply(u User) User {
	u.ID = p.ID
	if p.Name != nil {
		u.Name = *p.Name
	}
	if p.Email != nil {
		u.Email = *p.Email
	}
	if p.NewEmail != nil {
		u.Email = *p.NewEmail
	}
	if p.Bot != nil {
		u.Bot = *p.Bot
	}
	if p.Active != nil {
		u.Active = *p.Active
	}
	return u
}

func (w *World) learn(channels []Channel) {
	for _, c := range channels {
		w.channels[c.ID] = ChannelState{ID: c.ID, Name: c.Name, Live: !c.Archived}
	}
}

// inState says whether the state has this event in it already. Messages are in none.
func (w *World) inState(e *Event, sections ...string) bool {
	if e.Queue != w.queue || e.ID < 0 || e.ID > w.upTo {
		return false
	}
	for _, s := range sections {
		if w.ready[s] {
			return true
		}
	}
	return false
}

func (w *World) event(e *Event) error {
	switch e.Type {
	case "realm_user":
		if w.inState(e, "users") {
			return nil
		}
	case "stream", "subscription":
		if w.inState(e, "channels", "subscriptions") {
			return nil
		}
	case "message", "update_message", "delete_message":
	default:
		return nil
	}
	if e.Stub != nil && len(e.Raw) == 0 {
		return ErrStub
	}
	if e.Type == "realm_user" {
		var b struct {
			Op     string `json:"op"`
			Person person `json:"person"`
		}
		if err := json.Unmarshal(e.Raw, &b); err != nil {
			return e.unreadable(err)
		}
		switch known, ok := w.people[b.Person.ID]; {
		case b.Op == "add":
			w.people[b.Person.ID] = b.Person.apply(User{Active: true})
		case !ok: // a change of somebody of whom nothing is known
		case b.Op == "update":
			w.people[known.ID] = b.Person.apply(known)
		case b.Op == "remove":
			known.Active = false
			w.people[known.ID] = known
		}
		return nil
	}
	body, err := e.Body()
	if err != nil {
		return err
	}
	switch b := body.(type) {
	case *Stream:
		return w.channel(e, b)
	case *Subscription:
		if b.Op == "add" {
			w.learn(b.Channels)
		}
	case *Message:
		w.put(b.ID, Place{ChannelID: b.ChannelID, Topic: b.Topic})
	case *UpdateMessage:
		w.moved(b)
	case *DeleteMessage:
		for _, id := range b.IDs() {
			delete(w.places, id)
		}
	}
	return nil
}

func (w *World) channel(e *Event, b *Stream) error {
	switch b.Op {
	case "create":
		w.learn(b.Channels)
	case "delete":
		ids := b.ChannelIDs
		for _, c := range b.Channels { // before feature level 343 in no other place
			ids = append(ids, c.ID)
		}
		for _, id := range ids {
			if c, ok := w.channels[id]; ok {
				c.Live = false
				w.channels[id] = c
			}
		}
	case "update":
		c, ok := w.channels[b.ChannelID]
		if !ok {
			return nil
		}
		var err error
		switch b.Property {
		case "name":
			err = json.Unmarshal(b.Value, &c.Name)
		case "is_archived":
			var archived bool
			err = json.Unmarshal(b.Value, &archived)
			c.Live = !archived
		}
		if err != nil {
			return e.unreadable(err)
		}
		w.channels[c.ID] = c
	}
	return nil
}

// moved notes the new place of messages, of those not seen before too: the event says all
// of it.
func (w *World) moved(u *UpdateMessage) {
	if !u.Moved() {
		return
	}
	to := Place{ChannelID: u.ChannelID, Topic: u.OldTopic}
	if u.NewChannelID != 0 {
		to.ChannelID = u.NewChannelID
	}
	if u.Topic != nil {
		to.Topic = *u.Topic
	}
	ids := u.MessageIDs
	if len(ids) == 0 {
		ids = []int64{u.MessageID}
	}
	for _, id := range ids {
		w.put(id, to)
	}
}

func (w *World) put(id int64, at Place) {
	if _, seen := w.places[id]; !seen {
		w.order = append(w.order, id)
	}
	w.places[id] = at
	most := w.Messages
	if most <= 0 {
		most = defaultMessages
	}
	for len(w.order) > most {
		delete(w.places, w.order[0])
		w.order = w.order[1:]
	}
}

// ErrNoState is that the stream holds no whole state: the bridge runs without --state, has
// not written one yet, or the stream's limits took a part.
var ErrNoState = errors.New("the stream holds no whole state of the organization: run the bridge with --state")

// loadTries is how often LoadWorld looks again where a newer state took the place of the
// one that it was reading.
const loadTries = 3

// LoadWorld reads the newest whole state of a realm from its stream, and returns with it
// the sequence from which on the world has to be fed, all that the stream holds from there
// on. Where there is none it is [ErrNoState].
//
// It needs the rights to read messages of the stream (STREAM.MSG.GET or DIRECT.GET) and to
// make a consumer; see docs/permissions.md.
func LoadWorld(ctx context.Context, js jetstream.JetStream, stream, realm string) (*World, uint64, error) {
	for try := 1; ; try++ {
		w, next, err := loadWorld(ctx, js, stream, realm)
		if !errors.Is(err, ErrNoState) || try == loadTries {
			return w, next, err
		}
	}
}

func loadWorld(ctx context.Context, js jetstream.JetStream, stream, realm string) (*World, uint64, error) {
	fail := func(err error) (*World, uint64, error) {
		return nil, 0, fmt.Errorf("the state of %s in the stream %s: %w", realm, stream, err)
	}
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return fail(err)
	}
	records := "zulip." + realm + ".bridge."
	last, err := s.GetLastMsgForSubject(ctx, records+"state-end")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return fail(ErrNoState)
	}
	if err != nil {
		return fail(err)
	}
	var end StateEnd
	if err := json.Unmarshal(last.Data, &end); err != nil || end.BeginSeq == 0 || end.BeginSeq >= last.Sequence {
		return fail(fmt.Errorf("the record of sequence %d, which should say where it is, cannot be read", last.Sequence))
	}
	consumer, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{records + "state-begin", records + "state.*", records + "state-end"},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy, OptStartSeq: end.BeginSeq})
	if err != nil {
		return fail(err)
	}
	w := NewWorld()
	reader := Reader{Consumer: consumer}
	for e, err := range reader.All(ctx) {
		if err != nil {
			return fail(err)
		}
		if e.Seq > last.Sequence {
			break
		}
		if err := w.Apply(e); err != nil {
			return fail(err)
		}
		if e.Seq == last.Sequence {
			break
		}
	}
	if ctx.Err() != nil {
		return fail(ctx.Err())
	}
	if len(w.ready) == 0 {
		return fail(ErrNoState)
	}
	return w, last.Sequence + 1, nil
}
