// A Go server that takes requests with the connector's secret alone. Culvert's connector sets the header on each request,
// after it removed whatever the caller sent under that name; nobody else on the network knows it.
//
//	ORIGIN_KEYS=NEW-SECRET,OLD-SECRET go run go-shared-secret.go
package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

// throughCulvert lets in who has one of the keys: one, or two while it changes, the new one and the one before.
func throughCulvert(keys []string, next http.Handler) http.Handler {
	var accepted [][sha256.Size]byte
	for _, key := range keys {
		if key != "" {
			accepted = append(accepted, sha256.Sum256([]byte("Bearer "+key)))
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Hashed, because a comparison in constant time still tells lengths; and all of them, so that time tells nobody
		// which one it was.
		given, known := sha256.Sum256([]byte(r.Header.Get("Authorization"))), 0
		for _, key := range accepted {
			known |= subtle.ConstantTimeCompare(key[:], given[:])
		}
		if known != 1 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func main() {
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "in\n") })
	guarded := throughCulvert(strings.Split(os.Getenv("ORIGIN_KEYS"), ","), app)
	log.Fatal(http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")), guarded))
}
