// A Go server that takes connections with the connector's certificate alone. make-certificates.sh makes the files.
//
//	CERTIFICATES=/etc/origin go run go-client-certificate.go
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

func main() {
	file := func(name string) string { return filepath.Join(os.Getenv("CERTIFICATES"), name) }
	pem, err := os.ReadFile(file("ca.pem"))
	if err != nil {
		log.Fatal(err)
	}
	// The authority that signed the connector's certificate, and no other.
	authority := x509.NewCertPool()
	authority.AppendCertsFromPEM(pem)
	server := http.Server{
		Addr:    net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "in\n") }),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs:  authority,
			VerifyConnection: func(state tls.ConnectionState) error {
				// The authority may have signed others too.
				if len(state.PeerCertificates) > 0 && state.PeerCertificates[0].VerifyHostname("connector") == nil {
					return nil
				}
				return errors.New("another's certificate")
			},
		},
	}
	log.Fatal(server.ListenAndServeTLS(file("origin.pem"), file("origin.key")))
}
