package bridge

import (
	"context"
	"encoding/json"
	"slices"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Where messages are has to be known for two options: --no-direct-messages, and
// --subjects by-place. Zulip does not say it of their reactions, flags and some edits.

// placesMost is of how many messages the place is remembered, the newest ones.
const placesMost = 1 << 16

// places is where the newest messages are, by their ids: in a channel, or among people.
type places struct {
	at     map[int64]subjects.Place
	order  []int64 // a ring of their ids, oldest first from next on
	next   int
	loaded bool // what the stream holds is in it too
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

// move takes note that messages are in another channel from now on.
func (p *places) move(ids []int64, to subjects.Place) {
	for _, id := range ids {
		if _, known := p.at[id]; known {
			p.at[id] = to
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

// of is the one place where all of these messages are; ok is false where it is not known,
// or not one.
func (p *places) of(ids []int64) (at subjects.Place, ok bool) {
	for i, id := range ids {
		here, known := p.at[id]
		if !known || i > 0 && here != at {
			return subjects.Nowhere, false
		}
		at = here
	}
	return at, len(ids) > 0
}

func (b *Bridge) byPlace() bool { return b.realm.Layout() == subjects.ByPlace }

// needsPlaces says whether it may be asked where messages are.
func (b *Bridge) needsPlaces() bool { return b.poller.Options.NoDirectMessages || b.byPlace() }

// looksUp says whether an event needs what loadPlaces reads.
func (b *Bridge) looksUp(ev *poller.Event) bool {
	// A move changes only what is known.
	return ev.Fault == "" && (directnessOf(ev) == lookItUp || ev.Type == "update_message" && b.byPlace())
}

// place is what is known of the places of messages.
func (b *Bridge) place() *places {
	if b.places == nil {
		b.places = new(places)
	}
	return b.places
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

// noteMove remembers where messages are behind an event that says that they were moved.
func (b *Bridge) noteMove(ev *poller.Event) {
	if ev.Fault != "" || ev.Type != "update_message" || !b.byPlace() {
		return
	}
	if ids, to := movedTo(ev.Raw); to > 0 {
		b.place().move(ids, to)
	}
}

// movedTo reads which messages an update_message event moved to another channel; Nowhere
// if it moved none.
func movedTo(raw []byte) (ids []int64, to subjects.Place) {
	var body events.UpdateMessage
	if json.Unmarshal(raw, &body) != nil || body.NewChannelID <= 0 {
		return nil, subjects.Nowhere
	}
	return append(body.MessageIDs, body.MessageID), subjects.Place(body.NewChannelID)
}

// withoutText are types of events that say which messages they are about, not where these
// are, and nothing of what is in them.
var withoutText = []string{"reaction", "update_message_flags"}

// placeOf says to which place an event belongs in a layout by place. What may be a direct
// message, or has a text of one, is never anywhere else than there.
func (b *Bridge) placeOf(ev *poller.Event) subjects.Place {
	about := directnessOf(ev)
	if about == notDirect && ev.ChannelID == 0 && slices.Contains(ofMessages, ev.Type) {
		about = lookItUp // in a channel that it does not name
	}
	switch about {
	case mayBeDirect:
		return subjects.Direct
	case lookItUp:
		at, known := b.place().of(messagesOf(ev))
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
// in neither. One of a type that is not known may be anywhere.
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
	return true, true, true
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

// loadPlaces reads where the newest messages are that the stream holds, if one of these
// events needs it: the headers say it, and by place the bodies of edits, of which some
// are moves. What a server lacks that lags behind counts as not known.
func (b *Bridge) loadPlaces(ctx context.Context, batch []poller.Event) error {
	if !b.needsPlaces() || b.place().loaded ||
		!slices.ContainsFunc(batch, func(ev poller.Event) bool { return b.looksUp(&ev) }) {
		return nil
	}
	until, err := b.lastOn(ctx, b.onMessages)
	if err != nil {
		return err
	}
	read, from := new(places), uint64(1)
	for back, all := uint64(firstLookBack), until == nil; !all && len(read.order) < placesMost; back *= lookBackGrows {
		all = back >= until.Seq
		from = max(1, until.Seq-min(until.Seq, back))
		err := b.patiently(ctx, func() error {
			*read = places{}
			return b.stream.Scan(ctx, b.onMessages, stream.Start{Seq: from}, until.Seq, true, func(m *stream.Stored) error {
				id, ok := headerInt(m, events.HeaderMessageID)
				switch channel, named := headerInt(m, events.HeaderChannelID); {
				case !ok:
				case named:
					read.note(id, subjects.Place(channel))
				case header(m, events.HeaderRecipientType) == events.RecipientDirect:
					read.note(id, subjects.Direct)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	if err := b.loadMoves(ctx, from, read); err != nil {
		return err
	}
	known := b.place() // of what came by since: it is newer
	for i := range known.order {
		id := known.order[(known.next+i)%len(known.order)]
		read.note(id, known.at[id])
		read.at[id] = known.at[id]
	}
	read.loaded = true
	b.places = read
	return nil
}

// loadMoves reads from a sequence on which messages were moved where. A move so large that
// it is in the object store is passed over.
func (b *Bridge) loadMoves(ctx context.Context, from uint64, read *places) error {
	if !b.byPlace() || len(read.order) == 0 {
		return nil
	}
	edits := b.realm.Type("update_message")
	until, err := b.lastOn(ctx, edits)
	if err != nil || until == nil || until.Seq < from {
		return err
	}
	return b.patiently(ctx, func() error {
		return b.stream.Scan(ctx, edits, stream.Start{Seq: from}, until.Seq, false, func(m *stream.Stored) error {
			ids, to := movedTo(m.Data)
			if _, ours := resumePointOf(m); ours && to > 0 {
				read.move(ids, to)
			}
			return nil
		})
	})
}
