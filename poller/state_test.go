package poller

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"zulip-nats/zulipsim"
)

// What the sections are called at Zulip, written out: in fetch_event_types, in the answer,
// and as types of events.
func TestSections(t *testing.T) {
	var got []string
	for _, s := range Sections() {
		got = append(got, fmt.Sprint(s.Name, s.word, s.Members, s.EventTypes))
		for _, typ := range s.EventTypes {
			if _, known := NearestType(typ); !known {
				t.Errorf("%s: no type %s", s.Name, typ)
			}
		}
	}
	want := []string{
		"users realm_user [realm_users realm_non_active_users cross_realm_bots] [realm_user]",
		"channels stream [streams] [stream]",
		"subscriptions subscription [subscriptions unsubscribed never_subscribed] [subscription stream]",
		"groups realm_user_groups [realm_user_groups] [user_group]",
		"emoji realm_emoji [realm_emoji] [realm_emoji]",
		"linkifiers realm_linkifiers [realm_linkifiers] [realm_linkifiers]",
		"profile-fields custom_profile_fields [custom_profile_fields] [custom_profile_fields]",
	}
	for i := range want {
		if i >= len(got) || strings.ReplaceAll(got[i], " ", "") != strings.ReplaceAll(want[i], " ", "") {
			t.Errorf("%s, want %s", got[i], want[i])
		}
	}
	some, err := SectionsOf([]string{"groups", "users", "groups"})
	if err != nil || len(some) != 2 || some[0].Name != "users" || some[1].Name != "groups" {
		t.Errorf("%v, %v", some, err)
	}
	if _, err = SectionsOf([]string{"users", "streams"}); err == nil ||
		!strings.Contains(err.Error(), `"streams" is no section of the state`) || !strings.Contains(err.Error(), "channels") {
		t.Errorf("streams: %v", err)
	}
}

// The state that Register returns is what the answer has, element by element, with the id
// of the last event that is in it; and polling begins at -1 all the same.
func TestRegisterState(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.DuringRegister = func(string) { s.Join("late@example.com", "Late <b>&") }
	}, func(t *testing.T, w *world) {
		w.Poller.State = Sections()
		w.sim.Join("ada@example.com", "Ada").SetActive(false)
		w.sim.CreateChannel("plans").Archive()
		w.sim.AddEmoji("parrot")
		w.sim.AddEmoji("<owl>")
		w.register()
		asked := w.sim.Requests()[0].Params["fetch_event_types"]
		if asked != `["custom_profile_fields","realm","realm_emoji","realm_linkifiers","realm_user",`+
			`"realm_user_groups","stream","subscription"]` {
			t.Errorf("it asks for %s", asked)
		}
		st := w.reg.State
		if st == nil || st.Last != 0 || w.at.Last != -1 {
			t.Fatalf("%+v, polled from %d", st, w.at.Last)
		}
		last, members, _ := w.sim.Registered(w.reg.QueueID)
		if last != st.Last {
			t.Errorf("up to %d, and it goes up to %d", st.Last, last)
		}
		var names []string
		for _, s := range st.Sections {
			names = append(names, s.Name)
			for _, m := range s.Members {
				begin, end := "[", "]"
				if m.Object {
					begin, end = "{", "}"
				}
				var parts []string
				for _, e := range m.Elements {
					parts = append(parts, string(e))
				}
				if got := begin + strings.Join(parts, ",") + end; got != string(members[m.Name]) {
					t.Errorf("%s is\n%s, and was sent as\n%s", m.Name, got, members[m.Name])
				}
			}
		}
		if !slices.Equal(names, []string{"users", "channels", "subscriptions", "groups", "emoji", "linkifiers",
			"profile-fields"}) {
			t.Errorf("sections %v", names)
		}
		if !strings.Contains(string(members["realm_users"]), "Late <b>&") {
			t.Error("what came during the register is not in the state")
		}
		b, err := w.Next(t.Context(), w.at)
		if err != nil || len(b.Events) != 1 || b.Events[0].ID != 0 {
			t.Errorf("from -1 comes %+v, %v", b, err)
		}
	})
}

// A server that fails over the state is asked without it in the end.
func TestRegisterWithoutState(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.Poller.State, _ = SectionsOf([]string{"users"})
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Register, Times: stateTries, Status: 500})
		w.register()
		if w.reg.State != nil {
			t.Errorf("%+v", w.reg.State)
		}
		var asked []string
		for _, r := range w.sim.Requests() {
			asked = append(asked, r.Params["fetch_event_types"])
		}
		if got := strings.Join(asked, " "); got != `["realm","realm_user","subscription"] ["realm","realm_user"] ["realm"]` {
			t.Errorf("it asks for %s", got)
		}
		w.register()
		if w.reg.State == nil || len(w.reg.State.Sections) != 1 {
			t.Errorf("the next one: %+v", w.reg.State)
		}
	})
}

// An answer that cannot be gone on from, or is none, makes no queue.
func TestStateThatCannotBe(t *testing.T) {
	id, zero := "q:1", int64(0)
	wanted, _ := SectionsOf([]string{"users", "emoji"})
	for _, c := range []struct {
		last    *int64
		members string
		says    string
	}{
		{nil, `{}`, "last_event_id"},
		{&zero, `{"realm_users":7}`, "realm_users"},
		{&zero, `{"realm_emoji":"x"}`, "realm_emoji"},
	} {
		r := &registered{QueueID: &id, Last: c.last}
		if err := json.Unmarshal([]byte(c.members), &r.members); err != nil {
			t.Fatal(err)
		}
		if _, err := DefaultOptions().registration(r, wanted); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.members, err)
		}
	}
	r := &registered{QueueID: &id, Last: &zero, members: map[string]json.RawMessage{"realm_users": []byte("null")}}
	if got, err := DefaultOptions().registration(r, wanted); err != nil || len(got.State.Sections) != 2 ||
		len(got.State.Sections[0].Members) != 0 {
		t.Errorf("without the members: %+v, %v", got, err)
	}
}
