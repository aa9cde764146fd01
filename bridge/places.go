package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Where messages are has to be known for two options: --no-direct-messages, and
// --subjects by-place. Zulip does not say it of their reactions, flags and some edits.

const (
	// placesMost is of how many messages the place is remembered, the newest ones.
	placesMost = 1 << 16
	// learnMost is how many messages an edit may name for those of them to be learned that
	// are not known: a topic of very many would push out all others.
	learnMost = 1000
	// placesTurn is how long events wait at most while it is read where messages are: where
	// those are that are not read by then is not known.
	placesTurn = 20 * time.Second
)

// places is where the newest messages are, by their ids: in a channel, or among people.
type places struct {
	at    map[int64]subjects.Place
	order []int64 // a ring of their ids, oldest first from next on
	next  int

	loaded bool   // what the stream holds is in it too
	upTo   uint64 // not loaded, but up to that sequence it was
}

// note takes note of where a message is. One that is known stays where it is: a message
// that is delivered again tells where it was once.
func (p *places) note(id int64, at subjects.Place) {
	if p.at == nil {
		p.at = map[int64]subjects.Place{}
	}
	if _, known := p.at[id]; known {
		return
	}
	if len(p.order) < placesMost {
		p.order = append(p.order, id)
	} else {
		delete(p.at, p.order[p.next])
		p.order[p.next] = id
		p.next = (p.next + 1) % placesMost
	}
	p.at[id] = at
}

// edited takes note of the channel where messages are by an edit. A direct message is never
// in one.
func (p *places) edited(ids []int64, channel subjects.Place) {
	for _, id := range ids {
		if at, known := p.at[id]; known && at != subjects.Direct {
			p.at[id] = channel
		} else if !known && len(ids) <= learnMost {
			p.note(id, channel)
		}
	}
}

// inChannels says whether all of these messages are known to be in channels.
func (p *places) inChannels(ids []int64) bool {
	for _, id := range ids {
		if at, known := p.at[id]; !known || at == subjects.Direct {
			return false
		}
	}
	return len(ids) > 0
}

// of is the place of these messages: that of direct ones if any is known to be one, else
// the one where all are. ok is false where it is not known, or not one. said are places
// that the event says itself.
func (p *places) of(ids []int64, said map[int64]subjects.Place) (at subjects.Place, ok bool) {
	ok = len(ids) > 0
	for i, id := range ids {
		here, known := said[id]
		if !known {
			here, known = p.at[id]
		}
		if here == subjects.Direct {
			return here, true
		}
		ok = ok && known && (i == 0 || here == at)
		at = here
	}
	if !ok {
		return subjects.Nowhere, false
	}
	return at, true
}

func (b *Bridge) byPlace() bool { return b.realm.Layout() == subjects.ByPlace }

// needsPlaces says whether it may be asked where messages are.
func (b *Bridge) needsPlaces() bool { return b.poller.Options.NoDirectMessages || b.byPlace() }

// looksUp says whether an event needs what loadPlaces reads.
func (b *Bridge) looksUp(ev *poller.Event) bool {
	// What an edit says is newer than what the stream holds.
	return ev.Fault == "" && (directnessOf(ev) == lookItUp || ev.Type == "update_message" && b.byPlace())
}

// place is what is known of the places of messages.
func (b *Bridge) place() *places {
	if b.places == nil {
		b.places = new(places)
	}
	return b.places
}

// forgetPlaces says that others have stored messages since our newest, or that the stream
// went back, to that sequence.
func (b *Bridge) forgetPlaces(seq uint64) {
	switch p := b.places; {
	case p == nil:
	case seq < b.knownSeq || !p.loaded && p.upTo == 0:
		b.places = nil
	case p.loaded:
		p.loaded, p.upTo = false, b.knownSeq
	}
}

// placeOfMessage is where a message is that says this of itself. One that does not say in
// which channel counts as direct.
func placeOfMessage(kind poller.Recipient, channel int64) subjects.Place {
	if kind != poller.RecipientChannel || channel <= 0 {
		return subjects.Direct
	}
	return subjects.Place(channel)
}

// notePlace remembers where a message is, if that may be asked for.
func (b *Bridge) notePlace(id int64, kind poller.Recipient, channel int64) {
	if id <= 0 || !b.needsPlaces() {
		return
	}
	b.place().note(id, placeOfMessage(kind, channel))
}

// noteEdit remembers where messages are by an edit: in the channel that it names, or in
// that where it moved them.
func (b *Bridge) noteEdit(ev *poller.Event) {
	if ev.Fault != "" || ev.Type != "update_message" || !b.byPlace() {
		return
	}
	if ids, channel := editedIn(ev.Raw); channel > 0 {
		b.place().edited(ids, channel)
	}
}

// editedIn reads in which channel the messages of an update_message event are now; Nowhere
// if it does not say it.
func editedIn(raw []byte) (ids []int64, channel subjects.Place) {
	var body struct {
		ID  int64          `json:"message_id"`
		IDs []int64        `json:"message_ids"`
		Was subjects.Place `json:"stream_id"`
		Is  subjects.Place `json:"new_stream_id"`
	}
	if json.Unmarshal(raw, &body) != nil || body.Was <= 0 {
		return nil, subjects.Nowhere
	}
	if body.Is > 0 {
		body.Was = body.Is
	}
	return append(body.IDs, body.ID), body.Was
}

// withoutText are types of events that say which messages they are about, mostly not where
// these are, and nothing of what is in them.
var withoutText = []string{"reaction", "update_message_flags"}

// placeOf says to which place an event belongs in a layout by place. What may be a direct
// message, or has a text of one, is never anywhere else than there.
func (b *Bridge) placeOf(ev *poller.Event) subjects.Place {
	about := directnessOf(ev)
	if ev.Recipient == poller.RecipientChannel && ev.ChannelID == 0 {
		about = lookItUp // in a channel that it does not name
	}
	switch about {
	case mayBeDirect:
		return subjects.Direct
	case lookItUp:
		at, known := b.place().of(messagesOf(ev), placesSaid(ev))
		if !known && !slices.Contains(withoutText, ev.Type) {
			return subjects.Direct
		}
		return at
	}
	return subjects.Place(ev.ChannelID)
}

// Types of events that name a channel themselves and are about no message: those of
// inChannels always, those of ofChannels in some of their ops.
var (
	inChannels = []string{"user_topic"}
	ofChannels = []string{"stream", "subscription"}
)

// PlacesOf says to which places events of a type go in a layout by place, as Zulip is known
// to send them: to those of channels, to the one of direct messages, to the one of what is
// in neither. One of a type that is not known is in a channel or counts as direct.
func PlacesOf(typ string) (channel, direct, none bool) {
	switch {
	case slices.Contains(ofTheAccount, typ):
		return false, true, false
	case slices.Contains(ofMessages, typ):
		return true, true, slices.Contains(withoutText, typ)
	case slices.Contains(inChannels, typ):
		return true, false, false
	case slices.Contains(ofChannels, typ):
		return true, false, true
	case slices.Contains(poller.EventTypes(), typ):
		return false, false, true
	}
	return true, true, false
}

// messagesOf reads which messages an event is about; none where it does not say so.
func messagesOf(ev *poller.Event) []int64 {
	var body struct {
		ID      int64   `json:"message_id"`
		IDs     []int64 `json:"message_ids"`
		Flagged []int64 `json:"messages"`
	}
	if json.Unmarshal(ev.Raw, &body) != nil {
		return nil
	}
	ids := append(body.IDs, body.Flagged...)
	if body.ID > 0 {
		ids = append(ids, body.ID)
	}
	return ids
}

// placesSaid reads the places of messages that flags say themselves: those that mark
// messages as unread do, for clients that do not have these.
func placesSaid(ev *poller.Event) map[int64]subjects.Place {
	var body struct {
		Details map[int64]struct {
			Type    string         `json:"type"`
			Channel subjects.Place `json:"stream_id"`
		} `json:"message_details"`
	}
	if ev.Type != "update_message_flags" || json.Unmarshal(ev.Raw, &body) != nil || len(body.Details) == 0 {
		return nil
	}
	said := map[int64]subjects.Place{}
	for id, d := range body.Details {
		if said[id] = subjects.Direct; d.Channel > 0 && (d.Type == "stream" || d.Type == "channel") {
			said[id] = d.Channel
		}
	}
	return said
}

// lacksPlaces says whether one of these events needs places that were not read yet.
func (b *Bridge) lacksPlaces(batch []poller.Event) bool {
	return b.needsPlaces() && !b.place().loaded &&
		slices.ContainsFunc(batch, func(ev poller.Event) bool { return b.looksUp(&ev) })
}

// loadPlaces reads where the newest messages are that the stream holds, if one of these
// events needs it: the headers say it, and by place the bodies of edits. What a server
// lacks that lags behind counts as not known, and so does what cannot be read in time.
func (b *Bridge) loadPlaces(ctx context.Context, batch []poller.Event) error {
	if !b.lacksPlaces(batch) {
		return nil
	}
	known := b.place()
	if known.upTo > 0 { // only what others have stored since
		if _, err := b.readPlaces(ctx, known, known.upTo+1); err != nil {
			return err
		}
		known.loaded = true
		return nil
	}
	read := new(places)
	for back := uint64(firstLookBack); ; back *= lookBackGrows {
		more, from := new(places), b.knownSeq-min(b.knownSeq, back)+1
		whole, err := b.readPlaces(ctx, more, from)
		if err != nil {
			return err
		}
		if len(more.order) > len(read.order) {
			read = more
		}
		if !whole || from == 1 || len(read.order) >= placesMost {
			break
		}
	}
	for i := range known.order { // what came by, of which the stream may not have all
		id := known.order[(known.next+i)%len(known.order)]
		read.note(id, known.at[id])
	}
	read.loaded = true
	b.places = read
	return nil
}

// readPlaces reads into p where the messages are that stand in the stream from a sequence
// on, up to our newest. It is not whole if that takes longer than events may wait. An edit
// so large that it is in the object store is passed over.
func (b *Bridge) readPlaces(ctx context.Context, p *places, from uint64) (whole bool, err error) {
	whole, err = b.readInTime(ctx, b.onMessages, from, true, func(m *stream.Stored) {
		id, ok := headerInt(m, events.HeaderMessageID)
		switch channel, named := headerInt(m, events.HeaderChannelID); {
		case !ok:
		case named:
			p.note(id, subjects.Place(channel))
		case header(m, events.HeaderRecipientType) == events.RecipientDirect:
			p.note(id, subjects.Direct)
		}
	})
	if err != nil || !b.byPlace() {
		return whole, err
	}
	edits, err := b.readInTime(ctx, b.realm.Type("update_message"), from, false, func(m *stream.Stored) {
		if ids, channel := editedIn(m.Data); channel > 0 {
			p.edited(ids, channel)
		}
	})
	if err == nil && !edits {
		*p = places{} // moves may be missing
	}
	return whole && edits, err
}

// readInTime gives see our messages on a subject from a sequence on, up to our newest. It
// waits for NATS, but a server that answers has placesTurn for all of them: where each is
// asked for by itself, they would take hours.
func (b *Bridge) readInTime(ctx context.Context, subject string, from uint64, headersOnly bool,
	see func(*stream.Stored)) (whole bool, err error) {
	enough := errors.New("it takes too long")
	err = b.patiently(ctx, func() error {
		began := time.Now()
		err := b.stream.Scan(ctx, subject, stream.Start{Seq: from}, b.knownSeq, headersOnly, func(m *stream.Stored) error {
			if _, ours := resumePointOf(m); ours {
				see(m)
			}
			if time.Since(began) > placesTurn {
				return enough
			}
			return nil
		})
		if whole = err == nil; errors.Is(err, enough) {
			err = nil
		}
		return err
	})
	return whole, err
}
