// Command zulip-nats puts every event that a Zulip account receives on NATS JetStream, once, in order, and as Zulip sent it. See the
// README, and package cli for the commands.
package main

import (
	"context"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"zulip-nats/cli"
)

func main() {
	// Whoever reads our output may go away, `head` say. That is an error of a write like any other, and not the end: the demo cleans up,
	// and the bridge goes on without its log.
	signal.Ignore(syscall.SIGPIPE)
	// net/http complains there about servers that send more than they announced, and quotes it: that would be people's messages.
	log.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for a clean stop. The second one ends the program as if it had no handler.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
