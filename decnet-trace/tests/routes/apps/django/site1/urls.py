from django.http import HttpResponse
from django.urls import include, path, re_path

extra = [path("deep/<str:word>", lambda request, word: HttpResponse(word))]

urlpatterns = [
    path("", lambda request: HttpResponse("home")),
    path("polls/", include("polls.urls", namespace="polls")),
    path("more/", include((extra, "more"))),
]
urlpatterns += [
    re_path(r"^archive/(?P<year>[0-9]{4})/$", lambda request, year: HttpResponse(year)),
]
