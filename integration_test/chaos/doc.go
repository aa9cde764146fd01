// Package chaos holds the tests in which processes are killed: the real program, real
// nats-servers, one and a cluster of three, and a Zulip that obeys Zulip's rules (package
// zulipsim). It holds nothing else, and no code that is not a test.
//
//	go test ./integration_test/chaos                                  all, in well under two minutes
//	go test ./integration_test/chaos -run TestChaos -v -kills 1000    by hand: more kills, and the table
//	go test ./integration_test/chaos -run TestHangs -v -hangs 100     by hand: more hangs of NATS, and the table
//	go test ./integration_test/chaos -run TestChaos -v -seed 7        the plan of an earlier run again
//	go test ./integration_test/chaos -run VerySlow -v -slow 3s        NATS even further away
//	go test ./integration_test/chaos -run TestNATS -v -logs logs      with every log kept in a folder
//
// chaos_test.go kills at random while events come, lets everything heal, and compares the
// stream with what Zulip had put in the queue: lost, twice, out of order, acknowledged
// before it was stored. A seed repeats what is done and in which order; when exactly it
// hits is the machine's chance, as in life.
//
// hang_test.go lets NATS hang for longer than a lease lasts, mostly when a record has
// just left, and compares the same; a queue may only be lost because Zulip dropped it.
//
// pair_test.go is about two programs of which one works: how long the other one takes to
// go on, and what becomes of one that was paused in the middle of a write.
//
// nats_test.go and stream_test.go put one thing wrong with NATS at a time: away, slow,
// full, not as it should be. Each has to be told in the log in words that an operator
// understands, must lose nothing, and must heal by itself as soon as its cause is gone.
// disk_linux_test.go does so with the disk, by a limit that only Linux can set for
// another process.
//
// world_test.go sets up Zulip and a realm's place on NATS, package harness starts the
// programs, verdict_test.go compares.
package chaos
