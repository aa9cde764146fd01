package fleet

import (
	"encoding/json"
	"hash/fnv"
	"strings"
	"time"
)

func instanceKey(id string) string { return "instance." + id + ".alive" }

func claimKey(realm string) string { return "realm." + realm + ".claim" }

// parseKey says whose key it is: the id of an instance, or a realm.
func parseKey(key string) (id, realm string) {
	parts := strings.Split(key, ".")
	if len(parts) != 3 {
		return "", ""
	}
	switch {
	case parts[0] == "instance" && parts[2] == "alive":
		return parts[1], ""
	case parts[0] == "realm" && parts[2] == "claim":
		return "", parts[1]
	}
	return "", ""
}

// card is the value of an instance's key.
type card struct {
	Holder
	// Leaving: it has been told to stop, and takes nothing any more.
	Leaving bool `json:"leaving,omitempty"`
	// Asks is the realm that it would like to have from whoever holds it.
	Asks string `json:"asks,omitempty"`
}

// parseCard is nil for a key that is gone, and for anything that is no card of that
// instance.
func parseCard(id string, value []byte) *card {
	var c card
	if value == nil || json.Unmarshal(value, &c) != nil || c.ID != id || c.Writer == "" {
		return nil
	}
	return &c
}

// claim is the value of a realm's key.
type claim struct {
	Instance string    `json:"instance"`
	Writer   string    `json:"writer"`
	Host     string    `json:"host"`
	Since    time.Time `json:"since"`
}

// parseClaim is nil for a key that is gone, and for anything that is no claim, which may be
// overwritten.
func parseClaim(value []byte) *claim {
	var c claim
	if value == nil || json.Unmarshal(value, &c) != nil || c.Instance == "" || c.Writer == "" {
		return nil
	}
	return &c
}

// claimed is what is known of a realm.
type claimed struct {
	*claim            // nil: nobody claims it
	revision   uint64 // of the key
	vanished   bool   // the key is no more, and there was no word of it: the bucket was purged
	vanishedAt time.Time
}

// view is what a watch has shown of the bucket.
type view struct {
	begun   time.Time // when the watch had begun
	barrier uint64    // a revision of our own key from after that; 0: none yet
	seen    uint64    // the newest revision that came

	cards  map[string]*card // by id
	claims map[string]claimed
}

func newView() *view { return &view{cards: map[string]*card{}, claims: map[string]claimed{}} }

// complete is true once everything has come that was there when the watch began: a watch
// goes by revisions, and what we wrote after it had begun has come.
func (v *view) complete() bool { return v.barrier > 0 && v.seen >= v.barrier }

// take takes note of what a key holds. What is older than what is known is passed over.
func (v *view) take(key string, e Entry) {
	id, realm := parseKey(key)
	switch {
	case id != "":
		if c := parseCard(id, e.Value); c != nil {
			v.cards[id] = c
		} else {
			delete(v.cards, id)
		}
	case realm != "" && e.Revision >= v.claims[realm].revision:
		v.claims[realm] = claimed{claim: parseClaim(e.Value), revision: e.Revision}
	}
}

// after makes a view that follows another one of the same session: a claim that is not in
// it any more, though nobody deleted it, is not free at once. The bucket was purged, and
// who holds the realm may not know yet.
func (v *view) after(old *view, now time.Time) {
	for realm, c := range old.claims {
		if _, there := v.claims[realm]; there || c.claim == nil {
			continue
		}
		if !c.vanished {
			c.vanished, c.vanishedAt = true, now
		}
		c.revision = 0
		v.claims[realm] = c
	}
}

// rank orders instances for a realm, each realm in its own way, so that several who see the
// same realms become free begin with different ones.
func rank(realm, id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(realm + " " + id))
	x := h.Sum64() // whose upper bits do not yet depend on the last letters
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
