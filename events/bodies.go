package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ErrStub is the error of [Event.Body] where the bytes are in the object store: [Resolve]
// fetches them.
var ErrStub = errors.New("the event was too large for a message: its bytes are in the object store")

// Body parses the bytes as what they are: *[Message], *[UpdateMessage], *[DeleteMessage],
// *[Reaction], *[Subscription], *[Stream], *[RealmUser], *[UserGroup], *[Typing],
// *[Presence]; of records *[Queue], *[GapOpened], *[GapClosed], *[Rejected], *[Skipped],
// *[Erased], *[Excluded], *[StateBegin], *[StatePiece], *[StateEnd]. It is nil, without an
// error, for all other types: unmarshal Raw as
// https://zulip.com/api/get-events describes it.
//
// The types have the fields that services ask for most, by the names that Zulip has for
// people (channel, topic, direct), and not all fields: those are in Raw.
func (e *Event) Body() (any, error) {
	if e.Stub != nil && len(e.Raw) == 0 {
		return nil, ErrStub
	}
	var to any
	switch e.Record {
	case "":
		switch e.Type {
		case "message":
			var m struct {
				Message *Message `json:"message"`
				Flags   []string `json:"flags"`
				LocalID string   `json:"local_message_id"`
			}
			if err := json.Unmarshal(e.Raw, &m); err != nil {
				return nil, e.unreadable(err)
			}
			if m.Message == nil {
				return nil, e.unreadable(errors.New("it has no message"))
			}
			m.Message.Flags, m.Message.LocalID = m.Flags, m.LocalID
			return m.Message, nil
		case "update_message":
			to = new(UpdateMessage)
		case "delete_message":
			to = new(DeleteMessage)
		case "reaction":
			to = new(Reaction)
		case "subscription":
			to = new(Subscription)
		case "stream":
			to = new(Stream)
		case "realm_user":
			to = new(RealmUser)
		case "user_group":
			to = new(UserGroup)
		case "typing":
			to = new(Typing)
		case "presence":
			to = new(Presence)
		default:
			return nil, nil
		}
	case RecordQueue:
		to = new(Queue)
	case RecordGapOpened:
		to = new(GapOpened)
	case RecordGapClosed:
		to = new(GapClosed)
	case RecordRejected:
		to = new(Rejected)
	case RecordErased:
		to = new(Erased)
	case RecordSkipped:
		to = new(Skipped)
	case RecordExcluded:
		to = new(Excluded)
	case RecordStateBegin:
		to = new(StateBegin)
	case RecordState:
		to = new(StatePiece)
	case RecordStateEnd:
		to = new(StateEnd)
	default:
		return nil, nil
	}
	if err := json.Unmarshal(e.Raw, to); err != nil {
		return nil, e.unreadable(err)
	}
	return to, nil
}

func (e *Event) unreadable(err error) error {
	return fmt.Errorf("the body of a message on %.200q is not what its type %.60q should be: %w", e.Subject, e.Type, err)
}

// Person is somebody as events name them. Fields that an event does not have are zero.
type Person struct {
	ID    int64
	Email string
	Name  string
}

// UnmarshalJSON takes the two spellings that Zulip has for a person's id: "id" in the
// recipients of a message, "user_id" elsewhere.
func (p *Person) UnmarshalJSON(b []byte) error {
	var v struct {
		ID     int64  `json:"id"`
		UserID int64  `json:"user_id"`
		Email  string `json:"email"`
		Name   string `json:"full_name"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*p = Person{ID: max(v.ID, v.UserID), Email: v.Email, Name: v.Name}
	return nil
}

// Recipient is where a message went: to a channel, or to people, the sender among them.
type Recipient struct {
	Channel string
	People  []Person
}

// UnmarshalJSON takes a channel's name or a list of people.
func (r *Recipient) UnmarshalJSON(b []byte) error {
	*r = Recipient{}
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, &r.People)
	}
	return json.Unmarshal(b, &r.Channel)
}

// Message is the body of a "message" event, live or from history.
type Message struct {
	ID          int64     `json:"id"`
	SenderID    int64     `json:"sender_id"`
	Sender      string    `json:"sender_full_name"`
	SenderEmail string    `json:"sender_email"`
	Kind        string    `json:"type"`      // "stream" or "private"; "channel" and "direct" may come one day
	ChannelID   int64     `json:"stream_id"` // 0 if it is a direct one
	To          Recipient `json:"display_recipient"`
	Topic       string    `json:"subject"` // may be empty in a channel too: Zulip's "general chat"
	Content     string    `json:"content"`
	ContentType string    `json:"content_type"` // text/x-markdown, or text/html with --apply-markdown
	Timestamp   int64     `json:"timestamp"`    // Unix, seconds
	Client      string    `json:"client"`

	// Flags and LocalID are those of the event: of the account that the bridge runs as.
	Flags   []string `json:"-"`
	LocalID string   `json:"-"`
}

// Direct says whether it went to people, and not to a channel.
func (m *Message) Direct() bool { return m.Kind == "private" || m.Kind == "direct" }

// Sent is when it was sent, by Zulip's clock.
func (m *Message) Sent() time.Time { return time.Unix(m.Timestamp, 0) }

// UpdateMessage is a change of messages: of the text of one, or of the place of several.
type UpdateMessage struct {
	UserID        *int64   `json:"user_id"` // nil: nobody, Zulip rendered it anew
	Timestamp     int64    `json:"edit_timestamp"`
	MessageID     int64    `json:"message_id"`
	MessageIDs    []int64  `json:"message_ids"`    // all that moved
	RenderingOnly bool     `json:"rendering_only"` // nothing was changed: a preview of a link came, say
	ChannelID     int64    `json:"stream_id"`      // where they were
	Channel       string   `json:"stream_name"`
	NewChannelID  int64    `json:"new_stream_id"` // 0: they stay in the channel
	OldTopic      string   `json:"orig_subject"`
	Topic         *string  `json:"subject"` // nil: they stay in the topic
	OldContent    string   `json:"orig_content"`
	Content       *string  `json:"content"` // nil: the text stays
	Propagate     string   `json:"propagate_mode"`
	Flags         []string `json:"flags"`
}

// Edited says whether somebody changed the text.
func (u *UpdateMessage) Edited() bool { return u.Content != nil && !u.RenderingOnly }

// Moved says whether messages went to another topic or channel.
func (u *UpdateMessage) Moved() bool { return u.Topic != nil || u.NewChannelID != 0 }

// DeleteMessage is the end of messages. Which field has the ids depends on the queue's
// options; IDs knows.
type DeleteMessage struct {
	MessageID  int64   `json:"message_id"`
	MessageIDs []int64 `json:"message_ids"`
	Kind       string  `json:"message_type"` // "stream" or "private"
	ChannelID  int64   `json:"stream_id"`
	Topic      string  `json:"topic"`
}

// IDs are those of the messages that are gone.
func (d *DeleteMessage) IDs() []int64 {
	if len(d.MessageIDs) == 0 && d.MessageID != 0 {
		return []int64{d.MessageID}
	}
	return d.MessageIDs
}

// Reaction is an emoji put on a message, or taken from it: Op is "add" or "remove".
type Reaction struct {
	Op        string `json:"op"`
	MessageID int64  `json:"message_id"`
	UserID    int64  `json:"user_id"`
	User      Person `json:"user"` // newer servers may leave it out
	Name      string `json:"emoji_name"`
	Code      string `json:"emoji_code"`    // of a Unicode emoji its code points in hexadecimal, '-' between
	Kind      string `json:"reaction_type"` // unicode_emoji, realm_emoji, zulip_extra_emoji
}

// Channel is one as events name it. Fields that an event does not have are zero.
type Channel struct {
	ID          int64   `json:"stream_id"`
	Name        string  `json:"name"`
	Description string  `json:"description"`
	Private     bool    `json:"invite_only"`
	Archived    bool    `json:"is_archived"`
	Subscribers []int64 `json:"subscribers"`
}

// Subscription is a change of who is subscribed. Op "add" and "remove" are about our
// account and have Channels; "peer_add" and "peer_remove" are about UserIDs in
// ChannelIDs; "update" is one Property of one channel.
type Subscription struct {
	Op         string          `json:"op"`
	Channels   []Channel       `json:"subscriptions"`
	ChannelIDs []int64         `json:"stream_ids"`
	UserIDs    []int64         `json:"user_ids"`
	ChannelID  int64           `json:"stream_id"`
	Property   string          `json:"property"`
	Value      json.RawMessage `json:"value"`
}

// Stream is a change of channels, which Zulip calls streams: Op is "create" or "delete",
// with Channels, or "update", which is one Property of one channel.
type Stream struct {
	Op         string          `json:"op"`
	Channels   []Channel       `json:"streams"`
	ChannelIDs []int64         `json:"stream_ids"` // of those deleted
	ChannelID  int64           `json:"stream_id"`
	Name       string          `json:"name"` // before the update
	Property   string          `json:"property"`
	Value      json.RawMessage `json:"value"`
}

// RealmUser is a change of people: Op is "add", "update" or "remove". Of an update, Person
// has the id, and besides only what was changed; read Raw to tell that from zeros.
type RealmUser struct {
	Op     string `json:"op"`
	Person Person `json:"person"`
}

// UserGroup is a change of groups: Op is "add", with Group; "remove"; "add_members",
// "remove_members", "add_subgroups", "remove_subgroups"; or "update", with Data.
type UserGroup struct {
	Op          string          `json:"op"`
	Group       *Group          `json:"group"`
	GroupID     int64           `json:"group_id"`
	UserIDs     []int64         `json:"user_ids"`
	SubgroupIDs []int64         `json:"direct_subgroup_ids"`
	Data        json.RawMessage `json:"data"`
}

// Group is a group of people.
type Group struct {
	ID          int64   `json:"id"`
	Name        string  `json:"name"`
	Description string  `json:"description"`
	Members     []int64 `json:"members"`
	System      bool    `json:"is_system_group"`
}

// Typing says that somebody writes: Op is "start" or "stop".
type Typing struct {
	Op         string   `json:"op"`
	Kind       string   `json:"message_type"` // "stream", "channel" or "direct"
	Sender     Person   `json:"sender"`
	Recipients []Person `json:"recipients"` // of a direct message
	ChannelID  int64    `json:"stream_id"`
	Topic      string   `json:"topic"`
}

// Presence says who is there: each client's word in Clients, by the client's name.
type Presence struct {
	UserID  int64                     `json:"user_id"`
	Email   string                    `json:"email"` // not with --slim-presence
	Server  float64                   `json:"server_timestamp"`
	Clients map[string]PresenceClient `json:"presence"`
}

// PresenceClient is one client's word.
type PresenceClient struct {
	Status    string `json:"status"` // "active" or "idle"
	Timestamp int64  `json:"timestamp"`
}
