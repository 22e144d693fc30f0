"""A reward of one's own for [reward.http], `python3 examples/reward_server.py 8100`. It likes images that take few bytes as a PNG."""
import base64, http.server, json, sys

class Reward(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        batch = json.loads(self.rfile.read(int(self.headers["content-length"])))
        scores = [-len(base64.b64decode(image)) / 1000 for image, prompt in zip(batch["images"], batch["prompts"])]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"scores": scores}).encode())

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Reward).serve_forever()
