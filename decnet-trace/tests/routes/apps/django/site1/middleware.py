from django.contrib.admindocs.views import simplify_regex


def own_route(get_response):
    def answer(request):
        response = get_response(request)
        if request.resolver_match is not None:
            response["x-route"] = simplify_regex(request.resolver_match.route)
        return response

    return answer
