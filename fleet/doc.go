// Package fleet runs many realms in one process, and shares them among several processes.
// It knows nothing of events: what a realm's work is, its caller says.
//
// # Many realms
//
// A [Fleet] has a loop for each realm. What ends one, and is for an operator to mend, halts
// that realm and leaves the others alone; it is tried again when [Fleet.Set] says anew which
// realms are to run, and with which settings. Only those whose settings differ are stopped
// and started again. Starts are spread, so that a thousand of them do not ask NATS and Zulip
// at one moment.
//
// # Several instances
//
// An instance is one process, or rather one session of it. All instances that are to share
// realms look at one NATS KV bucket, in which there are two sorts of keys:
//
//	instance.<id>.alive    this session lives, with a time to live; renewed at each third of it
//	realm.<realm>.claim    this instance works for the realm; for as long as its key is there
//
// So a thousand realms cost three renewals in the life of one key. Everybody follows the
// bucket by one watch, and so nobody asks again and again whether something has become
// free.
//
// A realm is free when nobody has claimed it, or when the instance that did has no key any
// more: it has gone, or could not renew its key in time. On the same machine a process that
// was killed is seen at once, by /proc. A claim is taken by a compare-and-swap on the key's
// revision, so of several who want it one gets it.
//
// An instance believes in itself until its own deadline, the life of the key counted from
// the moment when the last confirmed renewal was sent: that is before the server lets the
// key go. If the deadline passes, all that the session held is lost at once, and a new
// session begins, with a new id, a new key and a new watch. A holder that cannot renew in
// the meantime keeps what it has and asks on; a change of the bucket's leader takes several
// seconds, and giving up at the first failure would only make two changes of one.
//
// All of that is there for economy, so that one instance polls a realm and no two do. It is
// not what keeps the stream right: that is the compare-and-swap of package stream. So a
// claim that changes hands at the wrong moment harms nothing.
//
// # Even shares
//
// With N realms and M instances that live and are not about to leave, a share is N/M,
// rounded up. An instance claims what is free up to its share at once, and what is free
// beyond it when nobody else has taken it for the life of a key: others may not have that
// realm in their configuration.
//
// What is held stays where it is, and is evened out by asking: who holds at least two
// realms less than another writes into its own key which one of them it would like. It asks
// who holds most, and somebody else only if it wants nothing of that one for a while: realms
// are started one after the other. The holder finishes what it has in hand ([Lease.Asked])
// and names the other in the claim when it releases it, so that nobody else gets in between.
// One realm at a time is asked for, and one at a time is handed over. Each hand-over makes
// the two less unlike, so it comes to rest, with the least number of hand-overs that there
// can be.
package fleet
