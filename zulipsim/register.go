package zulipsim

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// stateTable is the state that register can return, one member a line.
//
//go:embed state.tsv
var stateTable string

// state is a member of the state: the word of fetch_event_types that brings it, its name,
// its value as JSON.
type state struct{ word, name, value string }

var states = readStates()

func readStates() []state {
	var list []state
	for line := range strings.Lines(stateTable) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), "\t"); len(f) == 3 && !strings.HasPrefix(line, "#") {
			list = append(list, state{f[0], f[1], f[2]})
		}
	}
	return list
}

// capabilities are the members of client_capabilities that the server keeps, with the
// level that brought each; others are dropped.
var capabilities = map[string]int{
	"notification_settings_null": 0, "bulk_message_deletion": 13, "user_avatar_url_field_optional": 18,
	"stream_typing_notifications": 58,
	"user_settings_object":        89, "linkifier_url_template": 176, "user_list_incomplete": 232,
	"include_deactivated_groups": 294,
	"archived_channels":          315, "empty_topic_name": 334, "simplified_presence_events": 419,
	"individual_emoji_changes": 491,
}

// narrowWords are the operands of "is" in a queue's narrow.
var narrowWords = []string{"dm", "private", "starred", "unread", "alerted", "mentioned", "resolved"}

// queueOptions reads what register is told of the queue
// (zerver/views/events_register.py). Arguments that an older or newer level does not know
// are left for ignored.
func (c *call) queueOptions() (opts Options, life time.Duration, r *refusal) {
	s, a := c.s, c.account
	opts = Options{ClientGravatar: true, Client: c.clientName(), Capabilities: map[string]bool{}}
	seconds := int64(0)
	var ignored any
	var narrow [][]string
	allPublicGiven := false
	steps := []func() *refusal{
		func() *refusal { _, r := c.value("apply_markdown", &opts.ApplyMarkdown, "a boolean"); return r },
		func() *refusal { _, r := c.value("client_gravatar", &opts.ClientGravatar, "a boolean"); return r },
		func() *refusal { _, r := c.value("slim_presence", &opts.SlimPresence, "a boolean"); return r },
		func() (r *refusal) {
			allPublicGiven, r = c.value("all_public_streams", &opts.AllPublicStreams, "a boolean")
			return r
		},
		func() *refusal {
			text, _ := c.arg("include_subscribers")
			opts.IncludeSubscribers = text == "true" || text == `"partial"` && c.level >= 412
			return nil
		},
		func() (r *refusal) { opts.Capabilities, r = c.capabilities(); return r },
		func() (r *refusal) { opts.EventTypes, r = c.words("event_types"); return r },
		func() (r *refusal) { opts.FetchEventTypes, r = c.words("fetch_event_types"); return r },
		func() (r *refusal) { narrow, r = c.narrow(); return r },
		func() *refusal {
			if c.level >= 288 {
				_, r := c.value("presence_history_limit_days", &ignored, "an integer")
				return r
			}
			return nil
		},
		func() (r *refusal) {
			if c.level < 481 {
				_, r = c.value("queue_lifespan_secs", &seconds, "an integer")
				return r
			}
			switch text, given := c.arg("idle_queue_timeout"); {
			case !given:
			case strings.Trim(text, `"`) == "mobile":
				seconds = int64((12 * time.Hour) / time.Second)
			default:
				if r = decode("idle_queue_timeout", text, &seconds, "an integer"); r == nil && seconds < 1 {
					r = bad("idle_queue_timeout is too small")
				}
			}
			return r
		},
	}
	for _, step := range steps {
		if r := step(); r != nil {
			return opts, 0, r
		}
	}
	s.lock()
	defer s.mu.Unlock()
	opts.Narrow = narrow
	if !allPublicGiven {
		opts.AllPublicStreams = a.AllPublic
	}
	if opts.AllPublicStreams && a.Guest {
		return opts, 0, bad("User not authorized for this query")
	}
	if len(opts.Narrow) == 0 && a.DefaultChannel != "" {
		opts.Narrow = [][]string{{"channel", a.DefaultChannel}}
	}
	if seconds < 0 {
		return opts, -1, nil
	}
	life = s.DefaultLife
	if seconds > 0 {
		life = s.MaxLife
		if limit := int64(s.MaxLife / time.Second); seconds < limit {
			life = time.Duration(seconds) * time.Second
		}
	}
	if s.GrantCap > 0 {
		life = min(life, s.GrantCap)
	}
	return opts, life, nil
}

// words reads a list of texts; nil if it is absent.
func (c *call) words(name string) ([]string, *refusal) {
	var list []any
	given, r := c.value(name, &list, "a list")
	if r != nil || !given {
		return nil, r
	}
	words := make([]string, len(list))
	for i, v := range list {
		w, ok := v.(string)
		if !ok {
			return nil, bad("%s[%d] is not a string", name, i)
		}
		words[i] = w
	}
	return words, nil
}

// capabilities reads client_capabilities, which may be absent but not without its oldest
// member.
func (c *call) capabilities() (map[string]bool, *refusal) {
	kept := make(map[string]bool)
	var given map[string]json.RawMessage
	if sent, r := c.value("client_capabilities", &given, "a dict"); r != nil || !sent {
		return kept, r
	}
	if _, ok := given["notification_settings_null"]; !ok {
		return nil, bad(`client_capabilities["notification_settings_null"] field is missing: Field required`)
	}
	for name, level := range capabilities {
		text, ok := given[name]
		if !ok || c.level < level {
			continue
		}
		var yes bool
		if json.Unmarshal(text, &yes) != nil {
			return nil, bad(`client_capabilities["%s"] is not a boolean`, name)
		}
		kept[name] = yes
	}
	return kept, nil
}

// narrow reads a queue's narrow: pairs of texts with the few operators that a queue can
// filter by. A channel that does not exist is accepted, and matches nothing for ever.
func (c *call) narrow() ([][]string, *refusal) {
	var list []any
	given, r := c.value("narrow", &list, "a list")
	if r != nil || !given {
		return nil, r
	}
	terms := make([][]string, len(list))
	for i, v := range list {
		pair, ok := v.([]any)
		if !ok {
			return nil, bad("narrow[%d] is not a list", i)
		}
		for j, w := range pair {
			word, ok := w.(string)
			if !ok {
				return nil, bad("narrow[%d][%d] is not a string", i, j)
			}
			terms[i] = append(terms[i], word)
		}
		if len(pair) != 2 {
			return nil, bad("narrow[%d] is not a pair", i)
		}
	}
	for _, t := range terms {
		switch t[0] {
		case "channel", "stream", "topic", "sender":
		case "is":
			if !slices.Contains(narrowWords, t[1]) {
				return nil, bad("Operand %s not supported.", t[1])
			}
		default:
			return nil, bad("Operator %s not supported.", t[0])
		}
	}
	return terms, nil
}

// register is POST /register (do_events_register in zerver/lib/events.py): a queue is
// made, the state is read, then the queue is read without acknowledging anything, and the
// id of its last event is the answer's last_event_id. Whoever polls from there never sees
// those events.
func (c *call) register() {
	s := c.s
	opts, life, r := c.queueOptions()
	if r != nil {
		c.refused(r)
		return
	}
	if life < 0 { // a negative life is not thought of
		c.serverError()
		return
	}
	s.lock()
	down := s.down
	s.mu.Unlock()
	if down != nil {
		// Django asks Tornado for the queue three times, and then fails.
		t := time.NewTimer(6 * time.Second)
		defer t.Stop()
		select {
		case <-down:
		case <-t.C:
			c.serverError()
			return
		case <-c.r.Context().Done():
			return
		}
	}
	s.lock()
	q := s.newQueue(c.account, opts, life)
	s.mu.Unlock()
	if s.DuringRegister != nil {
		s.DuringRegister(q.id)
	}
	s.lock()
	defer s.mu.Unlock()
	c.succeed(func(o *object) {
		o.str("queue_id", q.id)
		o.str("zulip_version", s.Version)
		o.int("zulip_feature_level", int64(s.FeatureLevel))
		o.str("zulip_merge_base", "")
		if s.FeatureLevel >= 481 {
			o.int("idle_queue_timeout_secs", int64(life/time.Second))
		}
		var state object
		s.state(&state, c.account, opts)
		o.members(&state)
		last := int64(-1)
		if events := s.contents(q); len(events) > 0 {
			last = events[len(events)-1].last()
		}
		if !s.Forget {
			if s.registered == nil {
				s.registered = map[string]registered{}
			}
			s.registered[q.id] = registered{last, state.end()}
		}
		o.int("last_event_id", last)
	})
}

// state writes the state that the words of fetch_event_types bring: those of event_types
// if there are none, everything if there are neither.
func (s *Server) state(o *object, a *Account, opts Options) {
	words := opts.FetchEventTypes
	if words == nil {
		words = opts.EventTypes
	}
	want := func(w string) bool { return words == nil || slices.Contains(words, w) }
	for _, st := range states {
		if !want(st.word) || st.name == "unread_msgs" && !want("message") {
			continue
		}
		legacy := st.word == "update_display_settings" || st.word == "update_global_notifications"
		if legacy && (opts.Capabilities["user_settings_object"] || s.FeatureLevel >= 439) {
			continue
		}
		switch st.name {
		case "max_message_id":
			o.int(st.name, s.newest(a))
		case "realm_name":
			o.str(st.name, s.RealmName)
		case "realm_url":
			if s.FeatureLevel >= 257 {
				o.str(st.name, s.RealmURL)
			}
		case "realm_uri":
			o.str(st.name, s.RealmURL)
		case "realm_description":
			o.str(st.name, "The **"+s.RealmName+"** organization")
		case "realm_bot_domain":
			o.raw(st.name, st.value)
			if s.FeatureLevel >= 466 {
				o.str("realm_uuid", "0b1f6c1e-5d0a-4c57-9a3e-"+makeKey(s.RealmURL, 0)[:12])
			}
		case "realm_empty_topic_display_name":
			if s.FeatureLevel >= 334 {
				o.raw(st.name, st.value)
			}
		case "event_queue_longpoll_timeout_seconds":
			if s.FeatureLevel >= 74 {
				o.raw(st.name, st.value)
			}
		case "server_generation":
			o.int(st.name, s.generation)
		case "server_timestamp":
			o.raw(st.name, fmt.Sprintf("%.6f", float64(time.Now().UnixMicro())/1e6))
		case "max_message_length":
			o.int(st.name, int64(s.MaxMessageLength))
		case "user_id":
			o.int(st.name, a.ID)
		case "email", "delivery_email":
			o.str(st.name, a.Email)
		case "full_name":
			o.str(st.name, a.FullName)
		case "is_admin", "is_owner":
			o.bool(st.name, a.Owner)
		case "is_guest":
			o.bool(st.name, a.Guest)
		case "avatar_url":
			o.str(st.name, a.avatar())
		case "avatar_url_medium":
			o.str(st.name, strings.Replace(a.avatar(), "&version=", "&s=500&version=", 1))
		case "realm_users", "realm_non_active_users":
			var list []string
			for _, p := range s.people {
				if !p.system && p.Deactivated == (st.name == "realm_non_active_users") {
					var u object
					s.userFields(&u, p, false, opts.ClientGravatar)
					list = append(list, u.end())
				}
			}
			o.raw(st.name, "["+strings.Join(list, ",")+"]")
		case "streams", "subscriptions", "never_subscribed":
			o.raw(st.name, s.channelList(a, st.name, opts))
		case "starred_messages":
			ids := []int64{}
			for _, m := range s.messages {
				if r := m.row(a); r != nil && !m.ghost && slices.Contains(r.flags, "starred") {
					ids = append(ids, m.id)
				}
			}
			o.json(st.name, ids)
		default:
			o.raw(st.name, s.stateValue(st.name))
		}
	}
}

// channelList is the channels of the state, in one of its three shapes: those that the
// account is in, those that it is not, and all that it may see. Archived ones are there
// for clients that declare to know them.
func (s *Server) channelList(a *Account, which string, opts Options) string {
	ids := make([]int64, 0, len(s.channelIDs))
	for id := range s.channelIDs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var list []string
	for _, id := range ids {
		c := s.channelIDs[id]
		switch in := a.subscribed(c); {
		case c.archived && !opts.Capabilities["archived_channels"]:
		case which == "subscriptions" && in:
			list = append(list, s.subscriptionObject(c, opts.IncludeSubscribers))
		case which == "streams" && a.sees(c), which == "never_subscribed" && !in && a.sees(c):
			list = append(list, s.channelObject(c))
		}
	}
	return "[" + strings.Join(list, ",") + "]"
}
