// A MongoDB-protocol server for the tests: FerretDB v1 on SQLite, with a turnstile in front of it.
//
// FerretDB v1 answers findAndModify and update by a SELECT and a later UPDATE without a lock around the two, so that two
// clients can both win a conditional update. MongoDB promises that a change of one document is atomic, and the stores are
// built on that promise. The turnstile restores it: a request goes to FerretDB only when the answer to the one before has
// come back, whichever connection it came by. The handshakes and heartbeats of drivers pass at once, as they would not wait
// for others' commands at MongoDB.
//
// FerretDB is embedded, because `go install` of its command gives a program that ends at once: its release's version file
// is not part of the Go module. Embedded, it also has no telemetry at all.
//
//	mongo-server PORT DIRECTORY [free]     "free" leaves the turnstile open, to show what it is for
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

const (
	longest = 64 << 20
	// bit 1 of the flags of OP_MSG: the sender wants no answer (an unacknowledged write)
	opMsg      = 2013
	moreToCome = 2
)

var (
	turn sync.Mutex
	free bool
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: mongo-server PORT DIRECTORY [free]"))
	}
	port, directory := os.Args[1], os.Args[2]
	free = len(os.Args) > 3 && os.Args[3] == "free"
	socket := filepath.Join(directory, "ferretdb.sock")
	server, err := ferretdb.New(&ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{Unix: socket},
		Handler:   "sqlite",
		// what the tests kill is the client; without this every write waits for the disk
		SQLiteURL: "file:" + directory + "/?_pragma=synchronous(off)",
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	fail(err)
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	fail(err)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go accept(listener, socket)
	_ = server.Run(ctx)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func accept(listener net.Listener, socket string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go serve(client, socket)
	}
}

func serve(client net.Conn, socket string) {
	defer client.Close()
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	for {
		request, err := message(client)
		if err != nil {
			return
		}
		reply, err := exchange(server, request)
		if err != nil {
			return
		}
		if _, err = client.Write(reply); err != nil {
			return
		}
	}
}

func exchange(server net.Conn, request []byte) ([]byte, error) {
	if !free && !isGreeting(request) {
		turn.Lock()
		defer turn.Unlock()
	}
	if _, err := server.Write(request); err != nil {
		return nil, err
	}
	if wantsNoAnswer(request) {
		return nil, nil
	}
	return message(server)
}

// isGreeting tells a handshake or heartbeat: anything but OP_MSG, or a command of such a name. The name is the first key of
// the document after header (16 bytes), flags (4), kind of section (1), the document's length (4) and the key's type (1).
func isGreeting(request []byte) bool {
	if len(request) < 27 || binary.LittleEndian.Uint32(request[12:]) != opMsg {
		return true
	}
	for _, name := range []string{"hello", "ismaster", "isMaster", "ping"} {
		if bytes.HasPrefix(request[26:], append([]byte(name), 0)) {
			return true
		}
	}
	return false
}

func wantsNoAnswer(request []byte) bool {
	return len(request) >= 20 && binary.LittleEndian.Uint32(request[12:]) == opMsg &&
		binary.LittleEndian.Uint32(request[16:])&moreToCome != 0
}

func message(from io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint32(head[:])
	if length < 16 || length > longest {
		return nil, fmt.Errorf("a message of %d bytes", length)
	}
	whole := make([]byte, length)
	copy(whole, head[:])
	_, err := io.ReadFull(from, whole[4:])
	return whole, err
}
