package poller

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// Options are the options of an event queue. They say what its events look like, so a
// changed one needs a new queue, and all that can be sent are sent explicitly: the
// defaults of an account or of a later server change nothing. Options that only shape the
// state that register returns (include_subscribers, presence_history_limit_days) have no
// place here: they stay as Zulip has them, without subscribers.
type Options struct {
	// EventTypes are the types wanted; nil means all, an empty list none but heartbeats,
	// which come regardless. Zulip takes any name.
	EventTypes []string
	// Narrow restricts events of type message (and no others) to those that match every
	// [operator, operand]. Operators are channel or stream (by name), topic, sender
	// (e-mail) and is. A name that does not exist is accepted and matches nothing, for
	// ever. Beware: Zulip replaces an empty narrow by a bot's default events channel if
	// one is set, and nothing can be said against it.
	Narrow [][2]string
	// AllPublicStreams adds the message events of all public channels, subscribed or not;
	// nothing but births of messages, though. Guests are refused.
	AllPublicStreams bool
	// ApplyMarkdown makes message.content HTML instead of what was typed.
	ApplyMarkdown bool
	// ClientGravatar leaves avatar_url null where the client can compute a Gravatar
	// itself. Zulip's default is true.
	ClientGravatar bool
	// SlimPresence leaves e-mail addresses out of presence events.
	SlimPresence bool
	// ExcludeTypes are types of events, and NoDirectMessages all that is about direct
	// messages, that whoever stores the events has to leave out. Zulip has no such options,
	// and sends them all the same.
	ExcludeTypes     []string
	NoDirectMessages bool
	// Life is how long Zulip is asked to keep the queue while no poll waits, at most 7
	// days; 0 means 24 h. It is the outage that can be survived.
	Life time.Duration
}

const (
	// DefaultLife is the life asked for a queue.
	DefaultLife = 24 * time.Hour
	// MostLife is the longest that Zulip grants (zerver/tornado/event_queue.py,
	// MAX_QUEUE_TIMEOUT_SECS).
	MostLife = 7 * 24 * time.Hour
	// serverLife is what a queue gets that asks for nothing, defaultPatience how long a
	// poll may take if the server does not say.
	serverLife, defaultPatience = 10 * time.Minute, 90 * time.Second
)

// DefaultOptions returns the options of a bridge that is told nothing: all types, as the
// API's own defaults have them.
func DefaultOptions() Options { return Options{ClientGravatar: true} }

// capabilities are the client_capabilities that are declared: all that Zulip knows of.
// Each changes how some events look (the API description of POST /register), so this set
// is part of what consumers rely on.
var capabilities = map[string]bool{
	"notification_settings_null":     true, // per-channel notification settings may be null; Zulip requires it
	"bulk_message_deletion":          true, // one delete_message with message_ids, not one per message
	"user_avatar_url_field_optional": true, // avatar_url may be missing from users
	"stream_typing_notifications":    true, // typing in channels, not only in direct messages
	"user_settings_object":           true, // user_settings without its two older doubles
	"linkifier_url_template":         true,
	"user_list_incomplete":           true, // no placeholders for users that a guest may not see
	"include_deactivated_groups":     true, // deactivation is user_group/update, not remove
	"archived_channels":              true, // archiving is stream/update, not delete (level 378 on)
	"empty_topic_name":               true, // the empty topic is "", not "general chat"
	"simplified_presence_events":     true, // presence by user id
	"individual_emoji_changes":       true, // realm_emoji/add, not the whole table
}

func (o Options) life() time.Duration {
	if o.Life == 0 {
		return DefaultLife
	}
	return o.Life
}

// Validate returns a *ConfigError for what Zulip would answer with a 500 or change
// without a word.
func (o Options) Validate() error {
	if o.Life != 0 && (o.Life < time.Second || o.Life > MostLife) {
		return configErrorf("the queue's life must be between 1 s and 7 days")
	}
	for _, n := range o.Narrow {
		if n[0] == "" {
			return configErrorf("the narrow has a term without an operator; write channel:NAME, topic:NAME, " +
				"sender:EMAIL or is:WORD")
		}
	}
	return nil
}

// JSON is the canonical form: equal options give equal bytes, so that a later start can
// see whether something was changed.
func (o Options) JSON() []byte {
	sorted := func(types []string) []string {
		types = slices.Clone(types)
		slices.Sort(types)
		return slices.Compact(types)
	}
	types := sorted(o.EventTypes)
	if o.EventTypes != nil && types == nil {
		types = []string{}
	}
	b, err := json.Marshal(struct {
		EventTypes       []string        `json:"event_types"`
		Narrow           [][2]string     `json:"narrow"`
		AllPublicStreams bool            `json:"all_public_streams"`
		ApplyMarkdown    bool            `json:"apply_markdown"`
		ClientGravatar   bool            `json:"client_gravatar"`
		SlimPresence     bool            `json:"slim_presence"`
		Capabilities     map[string]bool `json:"client_capabilities"`
		Life             int64           `json:"idle_queue_timeout"`
		Exclude          []string        `json:"exclude_types,omitempty"`
		NoDirect         bool            `json:"no_direct_messages,omitempty"`
	}{types, append([][2]string{}, o.Narrow...), o.AllPublicStreams, o.ApplyMarkdown, o.ClientGravatar, o.SlimPresence,
		capabilities, seconds(o.life()), sorted(o.ExcludeTypes), o.NoDirectMessages})
	if err != nil {
		panic(err) // strings, booleans and a number
	}
	return b
}

// register is the form of POST /api/v1/register. Everything but strings is JSON text.
// channels asks for the account's channels besides, a kilobyte for each that it may see;
// state for those sections.
func (o Options) register(channels bool, state []Section) url.Values {
	life := strconv.FormatInt(seconds(o.life()), 10)
	form := url.Values{
		"all_public_streams":  {jsonText(o.AllPublicStreams)}, // absent, it would be the account's own default
		"apply_markdown":      {jsonText(o.ApplyMarkdown)},
		"client_gravatar":     {jsonText(o.ClientGravatar)},
		"slim_presence":       {jsonText(o.SlimPresence)},
		"client_capabilities": {jsonText(capabilities)},
		// The name until level 480, and the one from 481 on. Each server ignores the
		// other.
		"queue_lifespan_secs": {life},
		"idle_queue_timeout":  {life},
	}
	// Explicit, since without it Zulip applies pending events to state that was not asked
	// for (zerver/lib/events.py). The first carries the patience.
	fetch := []string{"realm"}
	if channels {
		fetch = append(fetch, "subscription")
	}
	for _, s := range state {
		fetch = append(fetch, s.word)
	}
	slices.Sort(fetch)
	form.Set("fetch_event_types", jsonText(slices.Compact(fetch)))
	if o.EventTypes != nil {
		form.Set("event_types", jsonText(o.EventTypes))
	}
	if len(o.Narrow) > 0 {
		form.Set("narrow", jsonText(o.Narrow))
	}
	return form
}

// messages are the parameters of GET /api/v1/messages that make a message look as in this
// queue's events. Their defaults are not those of register.
func (o Options) messages() url.Values {
	return url.Values{
		"apply_markdown":         {jsonText(o.ApplyMarkdown)},
		"client_gravatar":        {jsonText(o.ClientGravatar)},
		"allow_empty_topic_name": {jsonText(capabilities["empty_topic_name"])},
	}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings, booleans, numbers and lists and maps of them are given
	}
	return string(b)
}
