// Command zulip-nats puts every event that a Zulip account receives on NATS JetStream,
// once, in order, and as Zulip sent it. See the README, and package cli for the commands.
package main

import (
	"context"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"zulip-nats/cli"
)

func main() {
	// Whoever reads our output may go away, `head` say. That is an error of a write like
	// any other, and not the end: the demo cleans up, and the bridge goes on without its
	// log.
	signal.Ignore(syscall.SIGPIPE)
	// net/http complains there about servers that send more than they announced, and
	// quotes it: that would be people's messages.
	log.SetOutput(io.Discard)
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	hangup := make(chan os.Signal, 1)
	switch {
	case signal.Ignored(syscall.SIGHUP): // nohup
	case term.IsTerminal(int(os.Stdin.Fd())) || term.IsTerminal(int(os.Stderr.Fd())):
		ends = append(ends, syscall.SIGHUP) // whoever started it on this terminal has closed it
	default:
		signal.Notify(hangup, syscall.SIGHUP) // a daemon reads its settings again, and does not end
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	// The first signal asks for a clean stop. A second one ends the program as if it had
	// no handler, a second later: a terminal that is closed, a timeout command and the
	// like send two at once.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	ctx = cli.WithHangup(ctx, hangup)
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
