package zulipsim

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What happens to people and channels, each with the events that Zulip sends (shapes as in
// traffic of a Zulip 10.2). What is made by first use, [Server.Person] say, was there
// before anybody looked, and has none.

// Join adds a person to the organization: realm_user/add.
func (s *Server) Join(email, fullName string) *Account {
	s.lock()
	defer s.mu.Unlock()
	known := s.accounts[lower(email)] != nil
	a := s.account(email)
	if known {
		return a
	}
	a.Type, a.FullName = Human, fullName
	s.deliver(func() {
		s.each(everyone, func(q *queue) *event {
			var o object
			s.userFields(&o, a, true, q.opts.ClientGravatar)
			ev := newEvent("realm_user", "add")
			ev.raw("person", o.end())
			return ev.done()
		})
	})
	return a
}

// Rename changes the account's display name: realm_user/update.
func (a *Account) Rename(fullName string) {
	s := a.server
	s.lock()
	defer s.mu.Unlock()
	a.FullName = fullName
	s.changed(a, func(o *object) { o.str("full_name", fullName) })
}

// SetActive deactivates the account, or brings it back: realm_user/update (level 222 on).
func (a *Account) SetActive(active bool) {
	s := a.server
	s.lock()
	defer s.mu.Unlock()
	a.Deactivated = !active
	s.changed(a, func(o *object) { o.bool("is_active", active) })
}

// changed tells everybody what of an account is another now.
func (s *Server) changed(a *Account, what func(o *object)) {
	var o object
	o.int("user_id", a.ID)
	what(&o)
	ev := newEvent("realm_user", "update")
	ev.raw("person", o.end())
	e := ev.done()
	s.deliver(func() { s.emit(e, everyone) })
}

// CreateChannel makes a public channel: stream/create, and subscription/add for those who
// are subscribed to all of them. If there is one of that name, nothing happens.
func (s *Server) CreateChannel(name string) *Channel {
	s.lock()
	defer s.mu.Unlock()
	if c := s.channels[lower(name)]; c != nil {
		return c
	}
	c := s.channel(name)
	b := newEvent("stream", "create")
	b.raw("streams", "["+s.channelObject(c)+"]")
	ev := b.done()
	var who []*Account
	for _, a := range s.people { // nobody is in before the event says so
		if a.subscribed(c) {
			who = append(who, a)
		}
		a.subs[c] = false
	}
	s.deliver(func() { s.emit(ev, func(q *queue) bool { return q.account.sees(c) }) })
	s.subscribe(c, who...)
	return c
}

// Rename changes the channel's name: stream/update.
func (c *Channel) Rename(name string) {
	s := c.server
	s.lock()
	defer s.mu.Unlock()
	if s.channels[lower(name)] != nil {
		return
	}
	was := c.Name
	delete(s.channels, lower(was))
	c.Name = name
	s.channels[lower(name)] = c
	s.tellChannel(c, "name", string(encode(name)), was)
}

// Archive archives the channel, which then gets no messages any more. From level 378 on
// clients that declare archived_channels get stream/update; others, and all below, get
// stream/delete. The state shows it to those who declare it, from level 315 on.
func (c *Channel) Archive() {
	s := c.server
	s.lock()
	defer s.mu.Unlock()
	if c.archived {
		return
	}
	c.archived = true
	s.deliver(func() {
		s.each(func(q *queue) bool { return q.account.sees(c) }, func(q *queue) *event {
			if s.FeatureLevel >= 378 && q.opts.Capabilities["archived_channels"] {
				return channelChange(c, "is_archived", "true", c.Name)
			}
			ev := newEvent("stream", "delete")
			ev.raw("streams", fmt.Sprintf(`[{"stream_id":%d}]`, c.ID))
			ev.json("stream_ids", []int64{c.ID})
			return ev.done()
		})
	})
}

// Archived says whether the channel was archived.
func (c *Channel) Archived() bool {
	c.server.lock()
	defer c.server.mu.Unlock()
	return c.archived
}

func (s *Server) tellChannel(c *Channel, property, value, name string) {
	ev := channelChange(c, property, value, name)
	s.deliver(func() { s.emit(ev, func(q *queue) bool { return q.account.sees(c) }) })
}

func channelChange(c *Channel, property, value, name string) *event {
	var b builder
	b.ev = event{typ: "stream", op: "update"}
	b.str("op", "update")
	b.str("type", "stream")
	b.str("property", property)
	b.raw("value", value)
	b.int("stream_id", c.ID)
	b.str("name", name)
	return b.done()
}

// CreateGroup makes a group of people: user_group/add.
func (s *Server) CreateGroup(name string, members ...string) {
	s.lock()
	defer s.mu.Unlock()
	ids := []int64{}
	for _, email := range members {
		ids = append(ids, s.account(email).ID)
	}
	slices.Sort(ids)
	s.nextGroup++
	var o object
	o.str("name", name)
	o.raw("creator_id", "null")
	o.raw("date_created", "null")
	o.json("members", ids)
	o.str("description", "")
	o.int("id", 100+s.nextGroup)
	o.bool("is_system_group", false)
	o.raw("direct_subgroup_ids", "[]")
	o.bool("deactivated", false)
	group := o.end()
	s.setState("realm_user_groups", listWith(s.stateValue("realm_user_groups"), group))
	ev := newEvent("user_group", "add")
	ev.raw("group", group)
	e := ev.done()
	s.deliver(func() { s.emit(e, everyone) })
}

// AddEmoji adds an emoji of the organization: realm_emoji/update with the whole table, or
// from level 491 on realm_emoji/add for clients that declare individual_emoji_changes.
func (s *Server) AddEmoji(name string) {
	s.lock()
	defer s.mu.Unlock()
	s.nextEmoji++
	id := strconv.FormatInt(s.nextEmoji, 10)
	var o object
	o.str("id", id)
	o.str("name", name)
	o.str("source_url", "/user_avatars/2/emoji/images/"+id+".png")
	o.bool("deactivated", false)
	o.raw("author_id", "null")
	o.raw("still_url", "null")
	one := o.end()
	table := s.stateValue("realm_emoji")
	entry := `"` + id + `":` + one
	if table == "{}" {
		table = "{" + entry + "}"
	} else {
		table = table[:len(table)-1] + "," + entry + "}"
	}
	s.setState("realm_emoji", table)
	whole, single := newEvent("realm_emoji", "update"), newEvent("realm_emoji", "add")
	whole.raw("realm_emoji", table)
	single.raw("emoji", one)
	all, add := whole.done(), single.done()
	s.deliver(func() {
		s.emit(all, everyone)
		if s.FeatureLevel >= 491 {
			s.emit(add, everyone)
		}
	})
}

// AddLinkifier adds a linkifier: realm_linkifiers with the whole list.
func (s *Server) AddLinkifier(pattern, template string) {
	s.lock()
	defer s.mu.Unlock()
	s.nextLinkifier++
	var o object
	o.str("pattern", pattern)
	o.str("url_template", template)
	o.int("id", s.nextLinkifier)
	list := listWith(s.stateValue("realm_linkifiers"), o.end())
	s.setState("realm_linkifiers", list)
	ev := newEvent("realm_linkifiers", "")
	ev.raw("realm_linkifiers", list)
	e := ev.done()
	s.deliver(func() { s.emit(e, everyone) })
}

// AddProfileField adds a custom profile field: custom_profile_fields with the whole list.
func (s *Server) AddProfileField(name string) {
	s.lock()
	defer s.mu.Unlock()
	s.nextField++
	var o object
	o.int("id", s.nextField)
	o.str("name", name)
	o.int("type", 1)
	o.str("hint", "")
	o.str("field_data", "")
	o.int("order", s.nextField)
	o.bool("required", false)
	o.bool("editable_by_user", true)
	list := listWith(s.stateValue("custom_profile_fields"), o.end())
	s.setState("custom_profile_fields", list)
	ev := newEvent("custom_profile_fields", "")
	ev.raw("fields", list)
	e := ev.done()
	s.deliver(func() { s.emit(e, everyone) })
}

// stateValue is a member of the state that does not depend on who asks.
func (s *Server) stateValue(member string) string {
	if v, changed := s.changedState[member]; changed {
		return v
	}
	return initialState[member]
}

var initialState = func() map[string]string {
	values := map[string]string{}
	for _, st := range states {
		values[st.name] = st.value
	}
	return values
}()

func (s *Server) setState(member, value string) {
	if s.changedState == nil {
		s.changedState = map[string]string{}
	}
	s.changedState[member] = value
}

// listWith is a JSON list with one more element.
func listWith(list, element string) string {
	if list = strings.TrimSuffix(list, "]"); list != "[" {
		list += ","
	}
	return list + element + "]"
}

// registered is what a register answered with.
type registered struct {
	last  int64  // last_event_id
	state string // an object, with the members as sent
}

// Registered says what the register that made a queue answered with: up to which event of
// that queue the state goes, and its members as sent. It is for comparing with what a
// client made of it. ok is false where there was none, or Forget is set.
func (s *Server) Registered(queue string) (lastEventID int64, state map[string]json.RawMessage, ok bool) {
	s.lock()
	defer s.mu.Unlock()
	r, ok := s.registered[queue]
	if !ok || json.Unmarshal([]byte(r.state), &state) != nil {
		return 0, nil, false
	}
	return r.last, state, true
}

// KnownChannel is a channel as an account sees it.
type KnownChannel struct {
	Name     string
	Archived bool
}

// ChannelsOf are the channels that an account may see, by id.
func (s *Server) ChannelsOf(email string) map[int64]KnownChannel {
	s.lock()
	defer s.mu.Unlock()
	a, out := s.account(email), map[int64]KnownChannel{}
	for id, c := range s.channelIDs {
		if a.sees(c) {
			out[id] = KnownChannel{c.Name, c.archived}
		}
	}
	return out
}

// KnownPerson is a person as others see them.
type KnownPerson struct {
	Name, Email string
	Bot, Active bool
}

// People are all of the organization, by id.
func (s *Server) People() map[int64]KnownPerson {
	s.lock()
	defer s.mu.Unlock()
	out := map[int64]KnownPerson{}
	for _, a := range s.people {
		if !a.system {
			out[a.ID] = KnownPerson{a.FullName, a.shownEmail(), a.isBot(), !a.Deactivated}
		}
	}
	return out
}
