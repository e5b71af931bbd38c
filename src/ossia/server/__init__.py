"""The model over HTTP, in the shapes of OpenAI's API: HTTP ⇄ harmony ⇄ engine.

run, connection     a server's life, and that of a connection
app                 puts the routes together
limits              what every request passes: who may ask, how much, how many
chat, completions, responses, models, health         the routes
protocol, body      what a request may say          objects, errors     how answers and errors look
bridge              the one place where text meets the engine: a turn goes in, events come out
reader, events      tokens become events            choice              events become a chat message
stream, metrics, memory, services, settings          what the routes share
"""
